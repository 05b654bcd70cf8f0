"""What is optimised, what is minimised, and what keeps a noise a noise."""
