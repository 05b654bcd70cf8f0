"""Learning from the critics; the results are ordinary files of transformers, peft and Diffusers."""
