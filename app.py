"""The page of countgen, for ``python app.py``, ``gradio app.py`` and Hugging Face Spaces.

docs/spaces.md says how to make a Space of it. COUNTGEN_MODELS names the models that it offers,
separated by commas; without it there is pocket, which needs no download and no GPU.
"""

import os

from countgen.demo import build_app, launch_options

models = [name.strip() for name in os.environ.get("COUNTGEN_MODELS", "pocket").split(",")]
demo = build_app([name for name in models if name], warm=True)

if __name__ == "__main__":
    demo.launch(**launch_options())
