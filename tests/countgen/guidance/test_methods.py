"""Methods: choices that combine or are refused with a sentence, and a step of each preset by its source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from countgen import CountGuidedPipeline
from countgen.engine.job import Job
from countgen.engine.policy import (
    BestOfN,
    DrawThenEdit,
    DrawThenImprove,
    HillClimbing,
    PathIntegral,
    TrustRegion,
)
from countgen.errors import UsageError
from countgen.guidance.edits import Edits
from countgen.guidance.methods import METHODS, Method, find_method, without_gradient
from countgen.guidance.names import METHOD_NAMES
from countgen.guidance.objectives import (
    CountingReward,
    ScaledIndicator,
    SoftCount,
    TwoSidedHinge,
)
from countgen.guidance.optimizers import SGD, Adam, Polyak
from countgen.guidance.priors import KL, ChiNorm, Free, Moments, Renormalise, Spectrum
from countgen.guidance.steps import CountingGuidance, PromptSteering
from countgen.guidance.variables import CountToken, LatentModifier, MeanLogVariance
from pipelines.tokens import text_encoders

# -- putting them together ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"policy": DrawThenImprove()}, "needs an objective"),
        ({"policy": DrawThenEdit(steps=2)}, "needs an objective"),
        (
            {"policy": DrawThenImprove(), "objective": SoftCount(), "variable": MeanLogVariance()},
            r"Renormalise.*projects noise.*MeanLogVariance",
        ),
        (
            {
                "policy": DrawThenImprove(),
                "objective": SoftCount(),
                "variable": CountToken(),
                "prior": Spectrum(),
            },
            r"Spectrum.*CountToken.*ChiNorm",
        ),
        (
            {"policy": DrawThenEdit(), "variable": CountToken(), "prior": Free()},
            r"edits the noise.*DirectNoise, not CountToken",
        ),
        (
            {"policy": HillClimbing(), "variable": LatentModifier(), "prior": Free()},
            r"edits the noise.*LatentModifier",
        ),
    ],
)
def test_parts_that_make_no_sense_together_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Method("wrong", "", **parts)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(NAN), "lr.*positive and finite"),
        (lambda: SGD(INF), "lr.*positive and finite"),
        (lambda: SGD(1.0, momentum=1.5), r"momentum.*\[0, 1\)"),
        (lambda: SGD(1.0, clip=-1.0), "clip.*positive"),
        (lambda: Adam(0.0), "lr.*positive"),
        (lambda: Adam(0.1, betas=(1.0, 0.9)), r"betas.*\[0, 1\)"),
        (lambda: Adam(0.1, eps=-1.0), "eps.*positive"),
        (lambda: Polyak(INF), "step_size.*finite"),
        (lambda: Polyak(0.1, momentum=NAN), "momentum"),
        (lambda: ChiNorm(NAN), "weight of a prior"),
        (lambda: ChiNorm(power=0.5), "power.*at least 1"),
        (lambda: KL(-1.0), "weight of a prior"),
        (lambda: Moments(NAN), "weight of a prior"),
        (lambda: Spectrum(0), "at least one band"),
        (lambda: SoftCount("cubed"), "absolute, squared or relative"),
        (lambda: SoftCount(dead_zone=-1.0), "dead zone"),
        (lambda: ScaledIndicator(0.0), "inverse temperature"),
        (lambda: TwoSidedHinge(INF), "margin"),
        (lambda: CountingReward(2.0), "between 0 and 1"),
        (lambda: LatentModifier(hidden=0), "at least 1 wide"),
        (lambda: LatentModifier(NAN), "mix"),
        (lambda: CountToken(place="after"), "before a number or instead"),
        (lambda: CountingGuidance(NAN), "strength.*finite"),
        (lambda: PromptSteering("other"), "static or feedback"),
        (lambda: PromptSteering(weight=INF), "weight.*finite"),
        (lambda: Edits("round"), "hard or soft"),
        (lambda: replace(METHODS["reno"], grad_steps=0), "reno.*at least one step"),
        (lambda: replace(METHODS["reno"], semantic=NAN), "semantic weight of reno"),
        (lambda: BestOfN(-1), "negative"),
        (lambda: HillClimbing(batch=0), "at least 1"),
        (lambda: TrustRegion(share=2.0), "share.*between 0 and 1"),
        (lambda: TrustRegion(length=0.0), "length"),
        (lambda: PathIntegral(step=2.0), "step.*between 0 and 1"),
        (lambda: PathIntegral(temperature=0.0), "temperature"),
        (lambda: DrawThenEdit(copies=3.0), "copies"),
    ],
)
def test_settings_out_of_range_are_refused_where_they_are_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_that_make_sense_are_taken() -> None:
    for prior in (Free(), ChiNorm()):
        made = Method("t", "", DrawThenImprove(), SoftCount(), CountToken(), prior)
        assert made.gradient and not made.needs_candidates
    assert Method("p", "", BestOfN(), variable=CountToken(), prior=Renormalise()).gradient is False
    assert Method("s", "", HillClimbing(), SoftCount()).places is False


def test_unknown_names_have_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match=r"best-of.*did you mean best-of-n"):
        find_method("best-of")
    with pytest.raises(UsageError, match=r"qqqq.*there are none, best-of-n"):
        find_method("qqqq")
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}


def test_presets_say_where_they_come_from() -> None:
    ours = {"none", "best-of-n", "noise", "noise-soft", "noise-scaled", "edit"}
    ours |= {"engine", "engine-early"}
    for name, method in METHODS.items():
        assert method.summary and (method.standing == "ours") is (name in ours), name
        assert bool(method.source) is bool(method.chosen) is (name not in ours), name
    assert set(without_gradient()) == {"none", "best-of-n", "edit"} | {
        "hill-climbing",
        "trs",
        "zeno",
    }


def test_a_critic_must_give_what_a_method_reads(pocket: CountGuidedPipeline) -> None:
    density = pocket.verifier
    assert density is not None
    for name, message in (
        ("noise", "noise needs a critic that gives candidates"),
        ("hill-climbing", "gives candidates"),
        ("edit", "edits the noise under the critic's boxes"),
        ("d2d", "gives candidates"),
    ):
        with pytest.raises(UsageError, match=message):
            CountGuidedPipeline(pocket.adapter, density, guidance=name)
    for name in (
        "none",
        "best-of-n",
        "reno",
        "initno",
        "count-token",
        "counting-guidance",
        "engine",
    ):
        CountGuidedPipeline(pocket.adapter, density, guidance=name)
    wants_density = replace(find_method("reno"), objective=SoftCount(needs="density"))
    with pytest.raises(UsageError, match="gives density"):
        CountGuidedPipeline(pocket.adapter, pocket.critic, guidance=wants_density)


def test_a_semantic_term_needs_a_score(pocket: CountGuidedPipeline) -> None:
    with pytest.raises(UsageError, match=r"semantic term.*score="):
        CountGuidedPipeline(
            pocket.adapter, pocket.critic, guidance=replace(find_method("noise"), semantic=0.1)
        )


def test_a_token_needs_a_text_encoder(pocket: CountGuidedPipeline) -> None:
    class Blind:
        """The pocket adapter, as one whose pipeline cannot be reached."""

        pipeline = None

        def __getattr__(self, name: str) -> Any:
            return getattr(pocket.adapter, name)

    made = CountGuidedPipeline(pocket.adapter, pocket.critic)
    made.adapter = Blind()  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"text encoder.*noise or edit"):
        made.stream("two stars", guidance="count-token")


# -- a step of each gradient preset, from its source -----------------------------------------------

PROMPT, WANTED = "twenty dogs", 20
"""Not exact at the first look."""


def first_step(pocket: CountGuidedPipeline, name: str) -> tuple[Job, dict[str, Tensor]]:
    """A job after its first look, and what is optimised after the first step."""
    run = pocket.stream(PROMPT, guidance=name, seed=5)
    next(run)
    (job,) = run.jobs
    ahead = job.observations[0].ahead
    assert ahead is not None and job.records[0].gradient
    run.close()
    return job, ahead.rows


def counted(pocket: CountGuidedPipeline, noise: Any, text: Any = None) -> Any:
    adapter, plan = pocket.adapter, pocket.adapter.plan()
    text = adapter.encode([PROMPT], plan) if text is None else text
    return pocket.critic(adapter.render(noise, text, plan), [pocket.critic.prepare(["dog"])])


def chi(latents: Tensor, power: float = 1.0) -> Tensor:
    entries, radius = latents.numel(), latents.norm()
    excess = radius**2 / 2 - (entries - 1) * radius.log()
    excess = excess - (entries - 1) / 2 * (1 - torch.tensor(entries - 1.0).log())
    if power == 1:
        return 0.01 * excess
    return 0.01 * ((1 + excess.clamp_min(0) / entries) ** power - 1)


def close(found: Tensor, expected: Tensor, begin: Tensor) -> None:
    """Steps that agree to a hundredth of their length (float32 through eight steps and a detector)."""
    assert (expected - begin).norm() > 0
    assert (found - expected).norm() < 0.01 * (expected - begin).norm()


def test_a_step_of_reno(pocket: CountGuidedPipeline) -> None:
    job, rows = first_step(pocket, "reno")
    noise = job.request.draw(0)
    leaf = noise.latents.clone().requires_grad_()
    loss = (counted(pocket, replace(noise, latents=leaf)).soft - WANTED).abs().sum() + chi(leaf)
    (grad,) = torch.autograd.grad(loss, leaf)
    # Clipped to a norm of 0.1; SGD, learning rate 5, Nesterov momentum 0.9: the first step is 5 (1 + 0.9) g.
    grad = grad * min(1.0, 0.1 / float(grad.norm()))
    close(rows["latents"], noise.latents - 5.0 * 1.9 * grad, noise.latents)
    assert find_method("reno").policy == DrawThenImprove(draws=0, steps=50)


def test_a_step_of_initno(pocket: CountGuidedPipeline) -> None:
    job, rows = first_step(pocket, "initno")
    noise = job.request.draw(0)
    mean, spread = (torch.zeros_like(noise.latents).requires_grad_() for _ in range(2))
    made = noise.latents * (0.5 * spread).exp() + mean
    loss = (counted(pocket, replace(noise, latents=made)).soft - WANTED).abs().sum()
    loss = loss + 0.5 * (mean**2 + spread.exp() - 1 - spread).mean()
    grads = torch.autograd.grad(loss, (mean, spread))
    # Adam, learning rate 0.01 and eps 1e-3: the first step is lr * g / (|g| + eps).
    for name, grad in zip(("mean", "log_variance"), grads, strict=True):
        close(rows[name], -0.01 * grad / (grad.abs() + 1e-3), torch.zeros(()))


def test_a_step_of_the_count_token(pocket: CountGuidedPipeline) -> None:
    job, rows = first_step(pocket, "count-token")
    adapter, plan = pocket.adapter, pocket.adapter.plan()
    pipe: Any = adapter.pipeline  # type: ignore[attr-defined]
    ((tokenizer, encoder),) = text_encoders(pipe)
    ids = getattr(pipe, tokenizer)("some", add_special_tokens=False).input_ids
    leaf = (
        getattr(pipe, encoder).get_input_embeddings().weight[ids].detach().clone().requires_grad_()
    )
    text = adapter.encode(["<t> twenty dogs"], plan, {"<t>": [leaf]})
    loss = (counted(pocket, job.request.draw(0), text).soft - WANTED).abs().sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    begin = leaf.detach()
    # AdamW, learning rate and weight decay 0.01.
    close(rows["token.0"][0], begin * (1 - 1e-4) - 0.01 * grad / (grad.abs() + 1e-8), begin)


@pytest.mark.parametrize("wanted", [WANTED, 3])
def test_a_step_of_d2d(pocket: CountGuidedPipeline, wanted: int) -> None:
    """Objects that are missing, and surplus ones: the loss, its gradient, and Adam's first step."""
    run = pocket.stream(PROMPT, targets={"dog": wanted}, guidance="d2d", seed=5)
    next(run)
    (job,) = run.jobs
    ahead, noise = job.observations[0].ahead, job.request.draw(0)
    assert ahead is not None
    run.close()

    leaf = noise.latents.clone().requires_grad_()
    found = counted(pocket, replace(noise, latents=leaf))
    margins = found.candidates.margins[0, 0][found.candidates.distinct[0, 0]]
    hard = int(found.hard)
    assert hard < wanted if wanted == WANTED else hard > wanted
    # The margin times its steep sigmoid, of all candidates; mirrored, of the best that are not counted yet.
    above, below = margins * torch.sigmoid(4 * margins), -margins * torch.sigmoid(-4 * margins)
    loss = above.sum() if hard > wanted else below[hard:wanted].sum()
    assert job.records[0].loss == pytest.approx(float(loss.detach()), rel=1e-4)
    (grad,) = torch.autograd.grad(loss + chi(leaf, 10.0), leaf)

    # Three layers, of which the last is 0 at first, and all gradient its own: what goes into it (x) the
    # gradient of the noise. A share of 0.2 is the original noise's; the mixture is scaled back to its norm,
    # so that what lies along the noise has no gradient.
    first, silu = ahead.first, torch.nn.functional.silu
    state = noise.latents.flatten()
    for layer in range(2):
        state = silu(state @ first[f"weight{layer}"][0] + first[f"bias{layer}"][0])
    assert not first["weight2"].any() and state.norm() > 0.1
    unit = noise.latents / noise.latents.norm()
    across = (grad - (grad * unit).sum() * unit).flatten()
    expected = (1 - 0.2) * torch.outer(state, across)
    # Adam's mean after one step is 0.1 of the gradient, and the step 0.01 of its sign.
    nothing = torch.zeros(())
    close(ahead.state["mean.weight2"][0] / 0.1, expected, nothing)
    assert job.records[0].grad_norm == pytest.approx(float(expected.norm()), rel=0.01)
    sure = expected.abs() > 0.1 * expected.abs().mean()
    close(ahead.rows["weight2"][0][sure], -0.01 * expected[sure].sign(), nothing)
    for name in ("weight0", "bias0", "weight1", "bias1"):
        assert torch.equal(ahead.rows[name], first[name])


def test_our_step_is_polyaks_on_the_hinge(pocket: CountGuidedPipeline) -> None:
    method = replace(find_method("noise"), policy=DrawThenImprove(draws=0, steps=2))
    run = pocket.stream(PROMPT, guidance=method, seed=5)
    next(run)
    job = run.jobs[0]
    ahead = job.observations[0].ahead
    assert ahead is not None
    noise = job.request.draw(0).latents
    leaf = noise.clone().requires_grad_()
    estimate = counted(pocket, replace(job.request.draw(0), latents=leaf))
    loss = TwoSidedHinge(2.0)(estimate, torch.tensor([[WANTED]])).sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    reach = min(0.05 * float(noise.norm()), float(loss) / float(grad.norm()))
    moved = noise - reach * grad / grad.norm()
    close(ahead.rows["latents"], moved * noise.norm() / moved.norm(), noise)
    run.close()


def test_the_names_that_are_told_before_torch_are_those_of_the_methods() -> None:
    assert tuple(METHODS) == METHOD_NAMES
