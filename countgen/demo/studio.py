"""The generators and counters that a page offers: loaded once each, and shared by all of its visitors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from countgen import presets
from countgen.errors import UsageError
from countgen.guidance.names import METHOD_NAMES
from countgen.options import DEFAULT_METHOD, DEFAULT_MODEL, LoadOptions

if TYPE_CHECKING:
    from countgen.pipeline import CountGuidedPipeline
    from critics.base import Critic
    from pipelines.base import ImageSource

OWN = "the model's own"
"""What the page calls the critic that comes with a model."""


class Studio:
    """What there is to choose from, and what is loaded of it.

    Visitors choose by name among what the page was started with; they name no files and no repositories.
    """

    def __init__(
        self,
        models: Sequence[str] = (DEFAULT_MODEL,),
        critics: Sequence[str] = (),
        load: LoadOptions | None = None,
    ) -> None:
        """Offer models, the first one preselected, and further critics beside the models' own.

        Raises:
            UsageError: an unknown name; nothing is loaded yet.
        """
        if not models:
            raise UsageError("the page needs a model; pocket needs no download")
        for model in models:
            presets.find_preset(model)
        self.models = tuple(dict.fromkeys(models))
        own = [
            name
            for model in self.models
            for role, name in presets.find_preset(model).roles().items()
        ]
        for name in critics:
            presets.check_counter_name(name)
        self.counters = tuple(dict.fromkeys([*own, *critics]))
        self.critics = (OWN, *self.counters)
        self.methods = METHOD_NAMES
        self.default_method = DEFAULT_METHOD
        self._load = load or LoadOptions()
        self._lock = threading.RLock()
        self._generators: dict[str, ImageSource] = {}
        self._loaded: dict[str, Critic] = {}

    def warm(self) -> None:
        """Load the first model and its counters and draw once, so that the first visitor need not wait.

        What a picture costs is measured at the first one, and libraries load parts of themselves then.
        """
        pipeline = self.pipeline(self.models[0], OWN, (), self.default_method)
        pipeline("a picture", budget=0)

    def pipeline(
        self, model: str, critic: str, nouns: Sequence[str], method: str
    ) -> CountGuidedPipeline:
        """A generator with its counters.

        Args:
            critic: a name, or ``OWN``; the verifier is the model's own unless it is of the critic's family.

        Raises:
            UsageError: counters that cannot serve the method.
            critics.base.UnknownNounError: a noun that a counter cannot see.
        """
        from countgen.pipeline import CountGuidedPipeline

        names = self.check(model, critic, nouns, method)
        steering, checking = (self.counter(names[role], model) for role in ("critic", "verifier"))
        return CountGuidedPipeline(self.generator(model), steering, checking, method)

    def check(self, model: str, critic: str, nouns: Sequence[str], method: str) -> dict[str, str]:
        """Names of critic and verifier, if they can serve; nothing is loaded.

        Raises:
            UsageError, UnknownNounError: as ``pipeline``.
        """
        names = self.roles(model, critic, nouns)
        if critic == OWN:
            presets.find_preset(model).check_nouns(nouns)
        presets.check_counters(names, nouns, method)
        return names

    def roles(self, model: str, critic: str, nouns: Sequence[str]) -> dict[str, str]:
        """Names of critic and verifier, of two families."""
        own = presets.find_preset(model).roles(nouns)
        steering = own["critic"] if critic == OWN else critic
        family = presets.counter_card(steering).families
        checking = next(
            (
                name
                for name in (own["verifier"], own["critic"])
                if not presets.counter_card(name).families & family
            ),
            own["verifier"],
        )
        return {"critic": steering, "verifier": checking}

    def judge(self, model: str, pipeline: CountGuidedPipeline, nouns: Sequence[str]) -> str | None:
        """The model's own judge, if it is of another family than what draws and checks; else None."""
        name = presets.find_preset(model).roles(nouns)["judge"]
        taken = pipeline.critic.card.families
        if pipeline.verifier is not None:
            taken = taken | pipeline.verifier.card.families
        return None if presets.counter_card(name).families & taken else name

    def generator(self, model: str) -> ImageSource:
        """A model, loaded when it is first asked for."""
        with self._lock:
            if model not in self._generators:
                options = asdict(self._load)
                preset = presets.find_preset(model)
                options["device"] = options["device"] or preset.default_device
                self._generators[model] = presets.load_generator(model, **options)
            return self._generators[model]

    def counter(self, name: str, model: str | None = None) -> Critic:
        """A counter on the device of a model's generator, loaded when it is first asked for."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = presets.load_critic(name)
            place = self._load.device or presets.find_preset(model or self.models[0]).default_device
            return self._loaded[name].to(presets.check_device(place))
