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
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from critics.base import CriticCard, Query, check_nouns, look_up
from critics.density.base import DensityCritic
from critics.density.blockwise import KIND as BLOCKWISE
from critics.density.blockwise import BlockwiseCounter, expectation
from critics.density.clip_ebc import published
from critics.density.clip_ebc.network import ClipEbcConfig, ClipEbcNetwork, Numerals
from critics.loading import checkpoint
from critics.loading.checkpoint import CheckpointError, Config
from critics.loading.hub import load_tokenizer
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import IMAGENET, normalise
from critics.parts.queries import stack_text
from critics.parts.text import tokenize
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


def number_sentences(
    bins: int, singular: str = "person", plural: str = "people", numerals: Numerals = "words"
) -> list[str]:
    """One sentence a count bin, with the published wording; the last bin has no upper end.

    >>> number_sentences(3)
    ['There is no person.', 'There is one person.', 'There are more than two people.']
    >>> number_sentences(3, numerals="digits")
    ['There is 0 person.', 'There is 1 person.', 'There are more than 2 people.']
    """
    import inflect

    words = [str(n) for n in range(bins)]
    if numerals == "words":
        words = ["no", *(str(inflect.engine().number_to_words(word)) for word in words[1:])]
    rows = [f"There is {word} {singular}." for word in words[:2]]
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
        bins = len(config.anchors)
        if config.subject == "people":
            query = look_up(nouns, PEOPLE, "clip-ebc with people's sentences")
            rows = number_sentences(bins, numerals=config.numerals) * len(nouns)
        else:
            check_nouns(nouns)
            query = Query(tuple(nouns))
            rows = [
                row
                for noun in nouns
                for row in number_sentences(bins, noun, _plural(noun), config.numerals)
            ]
        device, encoder = self.network.logit_scale.device, self.network.text_encoder.config
        embeddings = torch.zeros(0, encoder.projection_dim, device=device)
        if rows:
            named = [noun for noun in nouns for _ in range(bins)]
            length = encoder.max_position_embeddings
            ids, attended = tokenize(self.tokenizer, rows, named, length, device)
            embeddings = self.network.encode_text(ids, attended).float()
        shape = (len(nouns), bins)
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


def _plural(noun: str) -> str:
    import inflect

    return str(inflect.engine().plural_noun(noun))


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    tokenizer: str | Path = "openai/clip-vit-base-patch16",
    anchors: Sequence[float] | None = None,
    block: int | None = None,
    numerals: Numerals | None = None,
    stride: int | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    local_files_only: bool = False,
) -> DensityCritic | BlockwiseCounter:
    """CLIP-EBC from a published ``.pth`` file, or from a folder that ``save`` wrote.

    A folder of ``countgen learn counter --family clip-ebc`` is read too: its bins are embedded per noun of a
    closed list in place of sentences, and it takes none of the options.

    Args:
        source: the file or the folder; files are not fetched, since they are pickles.
        allow_pickle: agree to read a ``.pth`` file; only tensors are taken from it (``weights_only``). One
            with the same tensors as ``.safetensors`` needs no consent.
        tokenizer: of a file: CLIP's, by hub id or folder. A folder from ``save`` has its own.
        anchors, block, numerals: of a file, which does not say them; all three are asked for. Mean count of
            each bin in the data that it was trained on, such as ``critics.density.clip_ebc.NWPU_ANCHORS``;
            side in pixels of the blocks, the authors' "reduction"; and whether the sentences had numbers in
            words or digits. The names of the authors' folders tell: that of the ViT,
            clip_vit_b_16_word_224_8_4_fine_1.0_dmcount_aug, says words, blocks of 8, and five bins from 0
            to "more than four", whose anchors depend on the data set.
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
        asked = {"anchors": anchors, "block": block, "numerals": numerals}
        if anchors is None or block is None or numerals is None:
            lacking = ", ".join(f"{key}=..." for key, value in asked.items() if value is None)
            raise CheckpointError(
                f"{source} does not say which counts its bins stand for, how large its blocks are, and "
                f"whether its sentences have numbers in words or digits: pass {lacking} (the names of the "
                "authors' folders tell: ..._word_224_8_4_... has words, blocks of 8 pixels and 5 bins)"
            )
        options = {"revision": revision} if revision else {}
        entries = published.vocabulary_size(source, state)
        words = load_tokenizer(
            CLIPTokenizer, tokenizer, entries, local_files_only=local_files_only, **options
        )
        network = published.network_of(source, state, words, tuple(anchors), block, numerals)
    elif _is_learned(source):
        return BlockwiseCounter.from_pretrained(source, _CURE)
    else:
        network, _ = checkpoint.load_network(source, _KIND, _network, _CURE)
        entries = network.text_encoder.config.vocab_size
        words = load_tokenizer(CLIPTokenizer, source, entries)
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


def _is_learned(folder: Path) -> bool:
    """Whether a folder holds the network without text encoder; what is wrong with it is told elsewhere."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("kind") == BLOCKWISE


def save(folder: Path, network: ClipEbcNetwork, tokenizer: Any, half: bool = True) -> None:
    """Write a trained network and its tokenizer so that ``load`` reads them: no pickles."""
    config = dataclasses.asdict(network.config) | {"kind": _KIND}
    checkpoint.save(folder, config, network, half)
    tokenizer.save_pretrained(folder)


_KIND = "clip-ebc"
_CURE = "Write the folder with critics.density.clip_ebc.save, or name a published .pth file."


def _network(config: Config) -> ClipEbcNetwork:
    return ClipEbcNetwork(config.fields(ClipEbcConfig))
