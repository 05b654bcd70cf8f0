"""One file a family of Diffusers pipelines, and a generic one."""
