"""Set predictors with a closed vocabulary: DETR, YOLOS, RT-DETRv2 and D-FINE, from ``transformers``.

A set predictor is trained by bipartite matching to give every object exactly one of its queries, so its
queries are counted without removing duplicates (``overlap=None``). Sources: DETR arXiv 2005.12872, YOLOS
arXiv 2106.00666, RT-DETR arXiv 2304.08069 and 2407.17140, D-FINE arXiv 2410.13842.

Networks, preprocessing and scores are as published: the hard count is the number of boxes of a class that
the processors' ``post_process_object_detection`` returns at the same threshold. (For DETR and YOLOS at 0.5 or
more: below, one query may count for two nouns here, but never there.) The soft count is a reconstruction;
see ``critics.parts.readout``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from critics.base import CriticCard, Query
from critics.detectors.base import DetectionCritic
from critics.loading.checkpoint import CheckpointError
from critics.loading.hub import (
    channel_statistics,
    load_model,
    load_part,
    picture_sides,
    resolve_source,
)
from critics.loading.settings import global_settings_kept
from critics.parts.preprocess import fit_sides, normalise, resize, scale_boxes
from critics.parts.queries import stack_classes
from critics.parts.readout import Detections, ReadOut, softmax_log_odds
from critics.parts.vocabulary import COCO, Vocabulary


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's image processor does to a picture before the network sees it.

    Attributes:
        size: height and width, whatever the aspect ratio; or None, and then
        sides: the shorter side and the longest that the longer one may be.
        size_multiple: what sides are rounded down to multiples of.
        statistics: means and deviations of the channels; None for values in [0, 1].
    """

    size: tuple[int, int] | None
    sides: tuple[int, int] = (800, 1333)
    size_multiple: int = 1
    statistics: tuple[Sequence[float], Sequence[float]] | None = None

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hh ww"]:
        height, width = images.shape[-2:]
        size = self.size or fit_sides(height, width, *self.sides, self.size_multiple)
        images = resize(images, size)
        return images if self.statistics is None else normalise(images, self.statistics)


@dataclass
class SetPredictor:
    """The family's part of a ``critics.detectors.base.DetectionCritic``.

    Attributes:
        network: images -> ``logits`` (b, c, n) and ``pred_boxes`` (b, c, 4), relative.
        background: True where the last of the n classes stands for no object and scores are a softmax;
            False where every class has a score of its own, a sigmoid.
    """

    network: nn.Module
    name: str
    vocabulary: Vocabulary
    preprocessing: Preprocessing
    background: bool

    def prepare(self, nouns: Sequence[str]) -> Query:
        return self.vocabulary.prepare(nouns, self.name)

    def detect(
        self, images: Float[Tensor, "b 3 height width"], queries: Sequence[Query]
    ) -> Detections:
        classes, _ = stack_classes(queries, images.device)
        dtype = next(self.network.parameters()).dtype
        found = self.network(pixel_values=self.preprocessing(images).to(dtype))
        logits = found.logits.float()
        if self.background:
            chosen = softmax_log_odds(logits, classes)
        else:
            index = classes[..., None].expand(-1, -1, logits.shape[1])
            chosen = logits.transpose(1, 2).gather(1, index)
        return Detections(chosen, scale_boxes(found.pred_boxes, images))


@dataclass(frozen=True)
class Kind:
    """What tells one published model from another.

    Attributes:
        models: ``model_type`` of the configs it loads -> class of ``transformers``.
        read_out: all queries take part, and a set has no duplicates; its threshold is the probability at
            which the authors' own demonstrations draw a box.
    """

    models: Mapping[str, str]
    processor: str
    read_out: ReadOut
    background: bool = False
    size_multiple: int = 1


def _every_query(threshold: float) -> ReadOut:
    return ReadOut(threshold, limit=None)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "detr": Kind(
            {"detr": "DetrForObjectDetection"},
            "DetrImageProcessorPil",
            _every_query(0.7),
            background=True,
        ),
        "yolos": Kind(
            {"yolos": "YolosForObjectDetection"},
            "YolosImageProcessorPil",
            _every_query(0.9),
            background=True,
            size_multiple=16,
        ),
        "rt-detrv2": Kind(
            {
                "rt_detr_v2": "RTDetrV2ForObjectDetection",
                "rt_detr": "RTDetrForObjectDetection",
            },
            "RTDetrImageProcessorPil",
            _every_query(0.6),
        ),
        "d-fine": Kind(
            {"d_fine": "DFineForObjectDetection"}, "RTDetrImageProcessorPil", _every_query(0.4)
        ),
    }
)


def _card(
    name: str, family: str, hub_id: str, summary: str, citation: str, size: int, **more: Any
) -> CriticCard:
    return CriticCard(
        name=name,
        family=family,
        summary=summary,
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        input_size=size,
        vocabulary=COCO,
        hub_id=hub_id,
        citation=citation,
        **more,
    )


CARDS: dict[str, CriticCard] = {
    card.name: card
    for card in (
        _card(
            "detr",
            "detr",
            "facebook/detr-resnet-50",
            "DETR with a ResNet-50: 100 queries, COCO's 80 nouns",
            "Carion et al., End-to-End Object Detection with Transformers, arXiv 2005.12872",
            800,
            # The branch for transformers' own ResNet, named on the model page: the main one needs timm.
            revision="no_timm",
            parameters=41_000_000,
        ),
        _card(
            "yolos",
            "yolos",
            "hustvl/yolos-small",
            "YOLOS, a plain ViT with 100 detection tokens, COCO's 80 nouns",
            "Fang et al., You Only Look at One Sequence, arXiv 2106.00666",
            800,
            parameters=31_000_000,
        ),
        _card(
            "rt-detrv2",
            "rt-detr",
            "PekingU/rtdetr_v2_r50vd",
            "RT-DETRv2 with a ResNet-50: 300 queries, COCO's 80 nouns; loads RT-DETR too",
            "Lv et al., RT-DETRv2: Improved Baseline with Bag-of-Freebies, arXiv 2407.17140",
            640,
            parameters=43_000_000,
        ),
        _card(
            "d-fine",
            "rt-detr",
            "ustc-community/dfine-small-coco",
            "D-FINE-S: 300 queries, COCO's 80 nouns; the same decoder as RT-DETR, so the same family",
            "Peng et al., D-FINE: Redefine Regression Task in DETRs, arXiv 2410.13842",
            640,
            parameters=10_000_000,
        ),
    )
}


@global_settings_kept()
def load(
    name: str,
    source: str | Path | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> DetectionCritic:
    """A set predictor by name. Its card names the nouns of the checkpoint, as its config spells them.

    Args:
        source: hub id or folder; None for the card's hub id.
        dtype: of the network; counts are float32.
        settings: of the read-out, in place of those in ``KINDS``; see ``critics.parts.readout.ReadOut``.

    Raises:
        CheckpointError: not found, damaged, or weights of another model.
    """
    import transformers

    kind = KINDS[name]
    read_out = kind.read_out.changed(**settings)
    source, options = resolve_source(CARDS[name], source, revision, local_files_only)
    config = load_part(transformers.AutoConfig, source, **options)
    if config.model_type not in kind.models:
        raise CheckpointError(
            f"{source} holds a model of the type {config.model_type!r}, but {name} is made of "
            f"{' or '.join(kind.models)}; name another checkpoint or another critic"
        )
    try:
        # How many batches a normalisation has seen is used in training only, and some checkpoints hold it.
        network = load_model(
            getattr(transformers, kind.models[config.model_type]),
            source,
            ignore=(r"num_batches_tracked$",),
            dtype=dtype,
            **options,
        )
    except ImportError as error:
        raise CheckpointError(
            f"the backbone of {source} needs a package that is not installed "
            f"({' '.join(str(error).split())}); or take a checkpoint with a backbone of transformers' own, "
            'such as revision="no_timm" of facebook/detr-resnet-50'
        ) from error
    vocabulary = Vocabulary.from_labels(config.id2label)
    preprocessing = _preprocessing(getattr(transformers, kind.processor), source, kind, options)
    detector = SetPredictor(network, name, vocabulary, preprocessing, kind.background)
    side = min(preprocessing.size or preprocessing.sides)
    card = CARDS[name].of(network, vocabulary=vocabulary.names, input_size=side)
    return DetectionCritic(detector, card, read_out)


def _preprocessing(
    cls: Any, source: str | Path, kind: Kind, options: Mapping[str, Any]
) -> Preprocessing:
    """From a checkpoint's preprocessor_config.json; the published values for a folder without one.

    Raises:
        CheckpointError: it cannot be read, or names a size that nothing here can make.
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "preprocessor_config.json").exists():
        processor = cls()
    else:
        processor = load_part(cls, source, **options)
    size = processor.size
    statistics = channel_statistics(processor, source) if processor.do_normalize else None
    if size.height and size.width:
        sides = picture_sides(size.height, size.width, source)
        return Preprocessing(sides, statistics=statistics)
    if size.shortest_edge and size.longest_edge:
        sides = picture_sides(size.shortest_edge, size.longest_edge, source)
        return Preprocessing(None, sides, kind.size_multiple, statistics)
    raise CheckpointError(
        f"preprocessor_config.json of {source} has the size {dict(size)}; "
        "name height and width, or shortest_edge and longest_edge"
    )
