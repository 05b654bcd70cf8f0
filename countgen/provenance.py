"""What a PNG file carries of how its picture was made: its settings, and the noise that it is drawn from.

Settings are JSON in the text ``countgen``, and for other programs the text ``parameters``. The noise, and the
embeddings of a count token where there is one, are safetensors in a private chunk, so that they travel with
the picture: 4 KB for pocket, 256 KB for 1024 x 1024 pixels of Stable Diffusion XL, and as much again for
every step at which its sampler adds noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from countgen.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from countgen.engine.job import Job
    from countgen.guidance.methods import Method
    from countgen.guidance.tokens import LearnedToken
    from countgen.options import LoadOptions
    from countgen.pipeline import CountGuidedPipeline
    from pipelines.base import Plan

CHUNK = b"cgNZ"
"""Of a PNG file: ancillary, private, not safe to copy into a changed picture; safetensors are in it."""


@dataclass(frozen=True)
class Provenance:
    """How a picture was made.

    Attributes:
        settings: of the picture; what is there depends on who wrote it.
        tensors: "latents" (1, c, h, w), "step_noise" (s, 1, c, h, w) where the sampler draws some, and
            "token.COMPONENT" (n, d) for every text encoder where there is a count token. Empty where the
            noise does not make the picture, as after guidance of single steps.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def provenance_of(
    job: Job,
    pipeline: CountGuidedPipeline,
    plan: Plan,
    method: Method,
    *,
    model: str,
    run_seed: int | None = None,
    image: int | None = None,
    seed: int | None = None,
    load: LoadOptions | None = None,
    token: LearnedToken | None = None,
) -> Provenance:
    """All that is known of how a finished picture was made.

    Args:
        model: name of a preset, hub id or folder, as the generator was loaded.
        run_seed, image: seed of the run, and the number of the picture among those of its prompt.
        seed: of the generator that its noise came from.
        load: how the generator was loaded.
        token: that its prompt was given.
    """
    from countgen import __version__
    from countgen.engine.run import counts_of
    from pipelines.adapter import DiffusersAdapter

    best = job.best
    assert best is not None
    inner = getattr(pipeline.adapter, "pipeline", None)
    sampler = getattr(inner, "scheduler", None)
    settings: dict[str, Any] = {
        "seed": seed,
        "counts": counts_of(job),
        "verified": job.verified,
        "outcome": job.outcome,
        "prompt": job.prompt.text,
        "targets": [{"noun": t.noun, "count": t.count} for t in job.prompt.targets],
        "model": model,
        "method": method.name,
        "run_seed": run_seed,
        "image": image,
        "candidate": best.record.candidate,
        "gradient_steps": best.record.step,
        "moves": _moves(job),
        "budget": job.request.budget,
        "pre": round(job.spent, 3),
        "critic": pipeline.critic.card.name,
        "verifier": pipeline.verifier.card.name if pipeline.verifier else "",
        "steps": plan.steps,
        "scheduler": type(sampler).__name__ if sampler is not None else "",
        "guidance_scale": plan.guidance_scale,
        "size": f"{best.size[1]}x{best.size[0]}",
        "version": f"countgen {__version__}",
    }
    if load is not None:
        settings["load"] = {
            name: value
            for name in ("dtype", "variant", "revision", "text_encoder")
            if (value := getattr(load, name)) is not None
        }
    if inner is None or not isinstance(pipeline.adapter, DiffusersAdapter) or method.guide:
        return Provenance(settings)
    if load is not None and load.text_encoder is not None:
        return Provenance(settings)  # Diffusers would load the pipeline's own
    if token is None and method.words is not None:
        token = method.words.token_for(pipeline.adapter, job.prompt)
    from pipelines.replay import call_of

    call = call_of(pipeline.adapter, plan)
    if call is None:
        return Provenance(settings)
    settings["diffusers"] = asdict(call)
    settings["dtype"] = str(inner.dtype).removeprefix("torch.")
    tensors = {"latents": best.noise.latents}
    if best.noise.step_noise is not None:
        tensors["step_noise"] = best.noise.step_noise
    written = _token(job, method, token, list(call.encoders))
    if written is not None:
        settings["token"], vectors = written
        tensors |= {f"token.{name}": vector for name, vector in vectors.items()}
    return Provenance(settings, {k: t.detach().cpu().float() for k, t in tensors.items()})


def _moves(job: Job) -> list[str]:
    """How the kept picture came about: the moves from its first draw to it."""
    by_number, moves = {record.number: record for record in job.records}, list[str]()
    record = job.best.record if job.best is not None else None
    while record is not None:
        moves.append(record.move)
        record = None if record.base is None else by_number[record.base]
    return moves[::-1]


def _token(
    job: Job, method: Method, token: LearnedToken | None, encoders: list[str]
) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """The count token of a picture: how it is written and where, and its embeddings by text encoder."""
    from countgen.guidance.prompt_tokens import place_token
    from countgen.guidance.variables import CountToken

    rows = job.best.rows if job.best is not None else None
    if rows and isinstance(method.variable, CountToken):
        text = "<count>"
        prompt = place_token(job.prompt, text, method.variable.place)[0]
        found = {name: rows[f"token.{i}"] for i, name in enumerate(encoders)}
        vectors = {name: row.reshape(-1, row.shape[-1]) for name, row in found.items()}
    elif token is not None:
        text, prompt, vectors = token.token, token.placed(job.prompt), dict(token.vectors)
    else:
        return None
    return {"text": text, "prompt": prompt}, vectors


def png(image: Image.Image, made: Provenance) -> bytes:
    """A PNG file that carries how its picture was made."""
    from countgen import drawing

    if not made.tensors:
        return drawing.png(image, made.settings)
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in made.tensors.items()})
    return drawing.png(image, made.settings, {CHUNK: data})


def read(path: str | Path) -> Provenance:
    """What a PNG file carries; nothing of it is to be trusted, for anyone can write such a file.

    Raises:
        UsageError: no PNG file of countgen, or a damaged one.
        OSError: there is no such file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            texts = dict(getattr(picture, "text", {}))
            chunks = dict(getattr(picture, "private_chunks", []))
    except (UnidentifiedImageError, ImportError):  # ultralytics then looks for pi_heif
        raise UsageError(f"{path} is no PNG file; countgen generate writes them") from None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} is damaged ({error})") from None
    try:
        settings = json.loads(texts.get("countgen", ""))
    except (json.JSONDecodeError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UsageError(
            f"{path} carries no settings of countgen; programs that make pictures smaller or show them on "
            "pages often take them off: name the file that countgen generate wrote"
        )
    if CHUNK not in chunks:
        return Provenance(settings)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return Provenance(settings, load(chunks[CHUNK]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the noise in {path} is damaged ({error})") from None
