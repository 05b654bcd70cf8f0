"""CLIP-EBC: every block of a picture is classified into counts by its likeness to sentences with numbers.

CLIP-EBC (Ma, Sanchez, Guha, arXiv 2403.09281). The cosine of each block of 8x8 pixels with the CLIP text
embedding of "There are two people." and so on, one sentence a bin; softmax over the bins, expectation over
their mean counts (eq. 5), sum. The image encoder is CLIP's ViT with prompts or its ResNet, see
``critics.density.clip_ebc.network``; the same authors' classifier without text is
``critics.density.dmcount_ebc``.

As published: networks, read-out, ImageNet (not CLIP's) normalisation, sentences, bins; windows side by side
for a ViT, the whole picture at once for a ResNet. Ours: pictures are stretched by less than a block to whole
blocks. The layout of published weights is that of the authors' code, whose classes gave the same maps for
the same random weights; no published file has been tried. Those weights know one noun, person. The
*class-generic* form (``subject="noun"``) puts other nouns into the sentences; nobody published weights for
it, and untrained it does not count: train a ``ClipEbcNetwork`` with
``critics.density.blockwise.blockwise_loss``, write it with ``save``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from critics.base import CriticCard, Query, check_nouns, look_up
from critics.density.base import DensityCritic, stack_text
from critics.density.blockwise import expectation
from critics.density.clip_ebc import published
from critics.density.clip_ebc.network import NWPU_ANCHORS, ClipEbcConfig, ClipEbcNetwork
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError
from critics.loading.hub import load_part
from critics.parts.preprocess import IMAGENET, normalise
from critics.parts.tiling import count_in_windows, fit
from critics.parts.vocabulary import PEOPLE

CARDS = {
    "clip-ebc": CriticCard(
        name="clip-ebc",
        family="clip",
        summary="blockwise count classification against number sentences; people only as published; the "
        "layout of published weights is unverified against a real file",
        license_code="MIT",
        license_weights="MIT",
        input_size=224,
        vocabulary=PEOPLE,
        hub_id="Yiming-M/CLIP-EBC",
        parameters=161_000_000,
        citation="Ma, Sanchez, Guha: CLIP-EBC, arXiv 2403.09281",
        published=True,
    )
}


def number_sentences(bins: int, singular: str = "person", plural: str = "people") -> list[str]:
    """One sentence a count bin, with the published wording; the last bin has no upper end.

    >>> number_sentences(3)
    ['There is no person.', 'There is one person.', 'There are more than two people.']
    """
    import inflect

    words = [str(inflect.engine().number_to_words(str(n))) for n in range(bins)]
    rows = [f"There is {word} {singular}." for word in ("no", *words[1:2])]
    rows += [f"There are {word} {plural}." for word in words[2:-1]]
    return [*rows, f"There are more than {words[-1]} {plural}."]


@dataclasses.dataclass
class ClipEbc:
    """A density model (``critics.density.base``): the expectation of CLIP-EBC's blockwise classification.

    Attributes:
        tokenizer: CLIP's.
        stride: between windows in pixels; None: the whole picture at once.
    """

    network: ClipEbcNetwork
    tokenizer: Any
    stride: int | None

    def prepare(self, nouns: Sequence[str]) -> Query:
        """Embed the sentences of each noun: ``text["bins"]``, (k, bins, d) unit vectors."""
        config = self.network.config
        if config.subject == "people":
            query = look_up(nouns, PEOPLE, "clip-ebc with people's sentences")
            rows = number_sentences(len(config.anchors)) * len(nouns)
        else:
            check_nouns(nouns)
            query = Query(tuple(nouns))
            rows = [
                row
                for noun in nouns
                for row in number_sentences(len(config.anchors), noun, _plural(noun))
            ]
        device = self.network.logit_scale.device
        width = self.network.text_encoder.config.projection_dim
        embeddings = torch.zeros(0, width, device=device)
        if rows:
            tokens = self.tokenizer(rows, padding=True, truncation=True, return_tensors="pt")
            # Not inference mode: its tensors could not take part in a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                keys = {k: v.clone().to(device) for k, v in tokens.items() if k in _TOKENS}
                embeddings = self.network.encode_text(keys).float()
        shape = (len(nouns), len(config.anchors))
        return Query(query.nouns, query.classes, {"bins": embeddings.unflatten(0, shape)})

    def density(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Float[Tensor, "b k h w"]:
        config, kind = self.network.config, self.network.logit_scale.dtype
        bins = stack_text(queries, "bins", images.device)

        def count(windows: Tensor, rows: Tensor) -> Tensor:
            pixels = normalise(windows, IMAGENET)
            logits = self.network(pixels.to(kind), bins[rows].to(kind))
            return expectation(logits, config.anchors)

        if self.stride is not None:
            return count_in_windows(count, images, config.window, config.block, self.stride)
        whole = fit(images, config.window, max(self.network.image_encoder.stride, config.block))
        return count(whole, torch.arange(len(images), device=images.device))


_TOKENS = ("input_ids", "attention_mask")


def _plural(noun: str) -> str:
    import inflect

    return str(inflect.engine().plural_noun(noun))


def load(
    name: str,
    source: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    tokenizer: str | Path = "openai/clip-vit-base-patch16",
    anchors: Sequence[float] = NWPU_ANCHORS,
    block: int = 8,
    stride: int | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    local_files_only: bool = False,
) -> DensityCritic:
    """CLIP-EBC from a published ``.pth`` file, or from a folder that ``save`` wrote.

    Args:
        source: the file or the folder; files are not fetched, since they are pickles.
        allow_pickle: agree to read a ``.pth`` file; only tensors are taken from it (``weights_only``). One
            with the same tensors as ``.safetensors`` needs no consent.
        tokenizer: of a file: CLIP's, by hub id or folder. A folder from ``save`` has its own.
        anchors: of a file: mean count of each bin, in the data it was trained on.
        block: of a file: the published reduction.
        stride: between windows in pixels; None: side by side for a ViT, no windows for a ResNet.
        dtype: of the network; counts are float32 in any case.
        revision, local_files_only: of the tokenizer on the hub.

    Raises:
        CheckpointError: no source, a pickle without consent, files that are missing, damaged or do not fit.
    """
    from transformers import CLIPTokenizer

    card = CARDS[name]
    if source is None:
        raise CheckpointError(
            f"{name} has pickled .pth files only: download one of https://huggingface.co/{card.hub_id} and "
            'give its path, load("clip-ebc", "best_mae.pth", allow_pickle=True), or a folder of safetensors'
        )
    source = Path(source)
    if source.is_file():
        state = checkpoint.read_published(source, allow_pickle)
        options = {"revision": revision} if revision else {}
        words = load_part(CLIPTokenizer, tokenizer, local_files_only=local_files_only, **options)
        network = published.network_of(source, state, words, tuple(anchors), block)
    else:
        network = _empty_network(source)
        checkpoint.load_weights(source, network, _CURE)
        words = load_part(CLIPTokenizer, source)
    network.to(dtype)
    config = network.config
    summary = card.summary
    if config.subject == "noun":
        summary = (
            "blockwise count classification against number sentences of any noun it was trained on"
        )
    card = card.of(
        network,
        summary=summary,
        input_size=config.window,
        vocabulary=PEOPLE if config.subject == "people" else None,
        published=config.subject == "people",
    )
    if stride is None and config.backbone == "vit":
        stride = config.window
    return DensityCritic(ClipEbc(network, words, stride), card)


def save(folder: Path, network: ClipEbcNetwork, tokenizer: Any, half: bool = True) -> None:
    """Write a trained network and its tokenizer so that ``load`` reads them: no pickles."""
    config = dataclasses.asdict(network.config) | {"kind": _KIND}
    checkpoint.save(folder, config, network, half)
    tokenizer.save_pretrained(folder)


_KIND = "clip-ebc"
_CURE = "Write the folder with critics.density.clip_ebc.critic.save, or name a published .pth file."


def _empty_network(folder: Path) -> ClipEbcNetwork:
    fields = checkpoint.read_config(folder, _KIND, _CURE)
    fields.pop("kind")
    try:
        return ClipEbcNetwork(ClipEbcConfig(**fields | {"anchors": tuple(fields["anchors"])}))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks or misstates a field of ClipEbcConfig ({error!r}). {_CURE}"
        ) from None
