"""A Diffusers script of a few lines that draws one picture from its noise, without this package.

What an adapter does for a pipeline, the pipeline itself does when it is called rightly; ``call_of`` says how,
and ``script`` writes it down.
"""

from __future__ import annotations

import inspect
import json
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.base import PipelineCard, Plan
from pipelines.tokens import text_encoders


@dataclass(frozen=True)
class Call:
    """How a Diffusers pipeline is called to draw what its adapter draws; all of it can be written as JSON.

    Attributes:
        kind: name of the pipeline's class.
        arguments: of its ``__call__``, besides prompt and latents.
        packed: its latents come in patches of 2 x 2.
        encoders: name of every text encoder -> name of its tokenizer.
        textual_inversion: whether the class has ``load_textual_inversion``.
        legacy: those text encoders that, by older configurations of CLIP, take the token of the greatest
            number for the end of the text.
    """

    kind: str
    arguments: Mapping[str, Any]
    packed: bool = False
    encoders: Mapping[str, str] = field(default_factory=dict)
    textual_inversion: bool = False
    legacy: Sequence[str] = ()


def call_of(pipeline: Any, card: PipelineCard, plan: Plan) -> Call:
    """How a loaded pipeline is called to draw what its adapter draws by this plan."""
    known = inspect.signature(type(pipeline).__call__).parameters
    arguments: dict[str, Any] = {
        "num_inference_steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "height": plan.height,
        "width": plan.width,
    }
    if card.timesteps is not None:
        arguments["timesteps"] = list(card.timesteps)
    if (
        "use_resolution_binning" in known
    ):  # sizes as they were asked for, not the nearest usual ones
        arguments["use_resolution_binning"] = False
    if "intermediate_timesteps" in known and plan.steps != 2:
        arguments["intermediate_timesteps"] = None
    packed = hasattr(pipeline, "_pack_latents")
    if packed and not pipeline.transformer.config.guidance_embeds:
        arguments["max_sequence_length"] = 256  # of T5, as FLUX.1-schnell was trained
    encoders = {encoder: tokenizer for tokenizer, encoder in text_encoders(pipeline)}
    legacy = [name for name in encoders if _pools_at_the_greatest(getattr(pipeline, name))]
    inversion = hasattr(pipeline, "load_textual_inversion")
    return Call(type(pipeline).__name__, arguments, packed, encoders, inversion, legacy)


def _pools_at_the_greatest(encoder: Any) -> bool:
    """Transformers takes an end of 2 for a sign of an old configuration, whatever the tokenizer's end is."""
    return type(encoder).__name__.startswith("CLIPText") and encoder.config.eos_token_id == 2


def script(
    source: str,
    call: Call,
    prompt: str,
    *,
    card: PipelineCard | None = None,
    dtype: str = "float32",
    options: Mapping[str, str] | None = None,
    step_noise: bool = False,
    token: str = "",
    beside: bool = False,
) -> str:
    """A script that draws the picture of ``noise.safetensors``, which lies beside it, as ``again.png``.

    Args:
        source: hub id or folder of the pipeline.
        prompt: as the text encoders read it, with a token in its place.
        card: of the preset, whose own components and scheduler take the place of the pipeline's.
        dtype: of the weights.
        options: further ones of ``from_pretrained``, such as ``variant``.
        step_noise: the file also holds the noise that the sampler adds at its steps.
        token: word of the prompt whose embeddings are in ``token.safetensors``; empty without.
        beside: ``source`` is a folder beside the script.

    Raises:
        ValueError: values that are no plain Python, as a picture from a stranger could hold.
    """
    if not dtype.isidentifier():
        raise ValueError(f"{dtype!r} is no precision")
    place = f"here / {source!r}" if beside else repr(source)
    more = "".join(f", {_named(key, value)}" for key, value in (options or {}).items())
    kept = f"dtype=torch.{dtype}, use_safetensors=True"
    overrides, scheduler = (card.overrides, card.scheduler) if card else ((), None)
    lines = [
        '"""Draws a picture again from its noise: pip install diffusers transformers accelerate"""',
        "",
        *(["import sys"] if step_noise else []),
        "from pathlib import Path",
        "",
        *(["import diffusers"] if scheduler else []),
        "import torch",
        "from diffusers import DiffusionPipeline",
        *(
            ["from huggingface_hub import hf_hub_download"]
            if any(one.kind == "weights" for one in overrides)
            else []
        ),
        "from safetensors.torch import load_file",
        "",
        "here = Path(__file__).resolve().parent",
        'noise = load_file(here / "noise.safetensors")',
        f"pipe = DiffusionPipeline.from_pretrained({place}, {kept}{more})",
    ]
    for one in overrides:
        part = f"pipe.{one.component}"
        if one.kind == "folder":
            lines.append(
                f"{part} = type({part}).from_pretrained("
                f"{one.hub_id!r}, subfolder={one.subfolder!r}, {kept})"
            )
        elif one.kind == "weights":
            lines.append(
                f"{part}.load_state_dict(load_file(hf_hub_download({one.hub_id!r}, {one.filename!r})))"
            )
        else:
            lines.append(f"pipe.load_lora_weights({one.hub_id!r}, weight_name={one.filename!r})")
            lines.append("pipe.fuse_lora()")
    if scheduler:
        name, settings = scheduler
        given = "".join(f", {_named(key, value)}" for key, value in settings.items())
        lines.append(f"pipe.scheduler = diffusers.{name}.from_config(pipe.scheduler.config{given})")
    if token:
        lines += _token_lines(call, token)
    lines += [
        'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
        'latents = noise["latents"].to(pipe.device, pipe.dtype)',
    ]
    if call.packed:
        lines.append("latents = pipe._pack_latents(latents, *latents.shape)")
    if step_noise:
        lines += [
            "# What the scheduler adds at its steps: handed out in the order in which it is drawn.",
            'steps = iter(noise["step_noise"].to(pipe.device, pipe.dtype))',
            "drawing = sys.modules[type(pipe.scheduler).__module__]",
            "drawing.randn_tensor = lambda *shape, **options: next(steps)",
        ]
    lines.append("image = pipe(")
    lines.append(f"    prompt={prompt!r},")
    lines.append("    latents=latents,")
    lines += [f"    {_named(key, value)}," for key, value in call.arguments.items()]
    lines += [").images[0]", 'image.save(here / "again.png")', ""]
    return "\n".join(lines)


_HIDE = """

def hide(new, encoder):
    # It takes the word of the greatest number for the end of the text, which must not be the new one.
    seen, table = [], encoder.get_input_embeddings()
    vector = table.weight[new].detach().clone()

    def before(module, args, kwargs):
        ids = args[0] if args else kwargs.pop("input_ids")
        seen[:] = [ids == new]
        return (ids.masked_fill(ids == new, 0),), kwargs

    def after(module, args, found):
        return torch.where(seen[0][..., None], vector.to(found), found)

    encoder.register_forward_pre_hook(before, with_kwargs=True)
    table.register_forward_hook(after)


"""


def _token_lines(call: Call, token: str) -> list[str]:
    """Give every text encoder the embeddings of a new word."""
    lines = ['token = load_file(here / "token.safetensors")']
    alone = len(call.encoders) == 1
    for encoder, tokenizer in call.encoders.items():
        if not (encoder.isidentifier() and tokenizer.isidentifier()):
            raise ValueError(f"{encoder!r} and {tokenizer!r} are no components")
        vector = f"token[{(token if alone else encoder)!r}]"
        words, text = f"pipe.{tokenizer}", f"pipe.{encoder}"
        if call.textual_inversion:
            lines.append(
                f"pipe.load_textual_inversion({{{token!r}: {vector}}}, "
                f"tokenizer={words}, text_encoder={text})"
            )
        else:
            lines += [
                f"{words}.add_tokens({token!r})",
                f"{text}.resize_token_embeddings(len({words}))",
                f"{text}.get_input_embeddings().weight.data[-1] = {vector}[0]",
            ]
        if encoder in call.legacy:
            lines.append(f"hide({words}.convert_tokens_to_ids({token!r}), {text})")
    return ([*_HIDE.splitlines()] if call.legacy else []) + lines


def _named(name: str, value: Any) -> str:
    """``name=value`` as Python, where the value is one of JSON.

    Raises:
        ValueError: another name or value.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no argument")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(f"{name} has a value that cannot be written down") from None
    return f"{name}={value!r}"
