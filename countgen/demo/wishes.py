"""What a visitor asks for, read from whatever was sent, and turned back from the settings of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from countgen import presets
from countgen.demo import limits as read
from countgen.demo.limits import Limits
from countgen.demo.studio import OWN, Studio
from countgen.errors import UsageError
from countgen.prompts import CountPrompt, CountTarget, pluralise, singularise


@dataclass(frozen=True)
class Wish:
    """One checked request for pictures of one prompt; None stands for what the model was made for."""

    prompt: CountPrompt
    model: str
    critic: str
    method: str
    seed: int
    pictures: int
    budget: float
    steps: int | None = None
    width: int | None = None
    height: int | None = None

    def options(self) -> dict[str, Any]:
        """For ``CountGuidedPipeline.stream``."""
        return {
            "num_images_per_prompt": self.pictures,
            "seed": self.seed,
            "budget": self.budget,
            "num_inference_steps": self.steps,
            "height": self.height,
            "width": self.width,
        }


def read_wish(values: Mapping[str, Any], studio: Studio, limits: Limits) -> Wish:
    """Check what was sent; what is missing is the default.

    Args:
        values: prompt, noun, number, model, critic, method, seed, pictures, budget, steps, width, height.

    Raises:
        UsageError: the first thing that is wrong, and what to do.
    """
    model = read.choice(values.get("model"), "the model", studio.models, studio.models[0])
    size = {
        name: read.whole(values.get(name), f"the {name}", 0, limits.side, 0)
        for name in ("width", "height")
    }
    for name, side in size.items():
        if 0 < side < read.LEAST_SIDE:
            raise UsageError(
                f"the {name} must be at least {read.LEAST_SIDE}, or 0 for the model's own"
            )
    return Wish(
        prompt=read_prompt(values, model, limits),
        model=model,
        critic=read.choice(values.get("critic"), "the critic", studio.critics, OWN),
        method=read.choice(
            values.get("method"), "the method", studio.methods, studio.default_method
        ),
        seed=read.whole(values.get("seed"), "the seed", 0, read.MAX_SEED, 0),
        pictures=read.whole(
            values.get("pictures"), "the number of pictures", 1, limits.pictures, 1
        ),
        budget=read.number(values.get("budget"), "the budget", 0, limits.budget, 64.0),
        steps=read.whole(values.get("steps"), "the number of steps", 0, limits.steps, 0) or None,
        width=size["width"] or None,
        height=size["height"] or None,
    )


def read_prompt(values: Mapping[str, Any], model: str, limits: Limits) -> CountPrompt:
    """A prompt as it is written, or of a noun and a number; with both, the noun is what is counted.

    Raises:
        UsageError: neither, too long, or more than the model can draw.
    """
    text = read.text(values.get("prompt"), "the prompt", limits.prompt, required=False)
    noun = read.text(values.get("noun"), "the noun", 60, required=False)
    targets = None
    if noun:
        if values.get("number") is None:
            raise UsageError(f"how many? Give the number of {pluralise(singularise(noun))}")
        count = read.whole(values["number"], "the number of objects", 0, limits.count)
        targets = [CountTarget(singularise(noun), count)]
        text = text or f"{count} {pluralise(targets[0].noun, count)}"
    prompt = presets.read_prompt(text, targets, presets.find_preset(model))
    for target in prompt.targets:
        if target.count > limits.count:
            raise UsageError(
                f"{target.count} {pluralise(target.noun)} are more than this page draws; ask for at most "
                f"{limits.count}"
            )
    return prompt


def form_of(settings: Mapping[str, Any], studio: Studio, limits: Limits) -> dict[str, Any]:
    """The values that draw a picture again, from the settings that it carries; checked as any others are.

    Raises:
        UsageError: settings that this page does not take, such as a model that it does not offer.
    """
    noun: Any = ""
    number: Any = None
    targets = settings.get("targets")
    text = settings.get("prompt")
    if isinstance(targets, list) and len(targets) == 1 and isinstance(targets[0], dict):
        found = presets.read_prompt(str(text)[: limits.prompt + 1]).targets if text else ()
        written = [{"noun": t.noun, "count": t.count} for t in found]
        if written != targets:  # they were given beside the prompt
            noun, number = targets[0].get("noun"), targets[0].get("count")
    critic = settings.get("critic")
    model = settings.get("model")
    own = (
        isinstance(model, str)
        and model in studio.models
        and critic == studio.roles(model, OWN, ())["critic"]
    )
    image = settings.get("image")
    values = {
        "prompt": text,
        "noun": noun,
        "number": number,
        "model": model,
        "critic": OWN if own or not critic else critic,
        "method": settings.get("method"),
        "seed": settings.get("run_seed"),
        "pictures": image + 1 if isinstance(image, int) else 1,
        "budget": settings.get("budget"),
        "steps": settings.get("steps"),
        "width": 0,
        "height": 0,
    }
    size = str(settings.get("size", "")).split("x")
    if len(size) == 2 and all(side.isascii() and side.isdecimal() for side in size):
        values["width"], values["height"] = (int(side[:6]) for side in size)
    try:
        wish = read_wish(values, studio, limits)
    except UsageError as error:
        raise UsageError(f"this page cannot draw that picture again: {error}") from None
    return values | {"seed": wish.seed, "budget": wish.budget, "pictures": wish.pictures}
