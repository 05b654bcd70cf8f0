"""The fit is the likeliest one, and its promises are kept; without a fit there is no number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from countgen.cli import main
from countgen.errors import UsageError
from countgen.evaluation.trust import FEATURES, Trust, find_trust, fit, reliability, told

NAMES = {"generator": "g", "critic": "c", "verifier": "v", "judge": "j"}


def rows(seed: int, number: int = 3000) -> list[dict[str, Any]]:
    """Verified pictures of which the judge confirms the fewer, the more tries there were."""
    random, out = np.random.default_rng(seed), []
    for _ in range(number):
        tries, sure = int(random.integers(1, 64)), float(random.uniform(0.4, 0.99))
        right = random.random() < 1 / (1 + np.exp(-(4 - 0.9 * np.log(tries) + 2 * (sure - 0.7))))
        kinds = int(random.integers(1, 4))
        out.append(
            {
                "verified": True,
                "wanted": [2] * kinds,
                "judge": [2] * kinds if right else [3] * kinds,
                "tries": tries,
                "confidence": {"critic": sure, "verifier": 0.8},
            }
        )
    return out


def test_promises_are_kept_on_fresh_pictures() -> None:
    fitted = fit(rows(1), NAMES)
    found = reliability(fitted, rows(2))
    assert found["calibration_error"] < 0.02 and found["pictures"] == 3000
    low, *_, high = found["curve"]
    assert low["promised"] < 0.7 < 0.9 < high["promised"]
    assert fitted.weights[FEATURES.index("tries")] < 0 < fitted.weights[0]
    # Promised to everything alike, the same pictures are told apart worse.
    flat = Trust(
        **NAMES,
        centre=(0,) * 4,
        scale=(1,) * 4,
        weights=(0,) * 4,
        intercept=9,
        pictures=1,
        agreed=1,
    )
    assert reliability(flat, rows(2))["calibration_error"] > 0.1


def test_the_fit_is_that_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    from countgen.evaluation.trust import _verified

    features, agreed = _verified(rows(3, 800))
    fitted = fit(rows(3, 800), NAMES, penalty=0.0)
    used = features.std(0) > 1e-9  # the verifier is equally sure of all
    standard = (features - features.mean(0))[:, used] / features.std(0)[used]
    expected = api.Logit(agreed, api.add_constant(standard)).fit(disp=0).params
    assert fitted.intercept == pytest.approx(expected[0], abs=1e-4)
    assert np.array(fitted.weights)[used] == pytest.approx(expected[1:], abs=1e-4)


def test_a_fit_is_saved_and_read(tmp_path: Path) -> None:
    fitted = fit(rows(1, 500), NAMES, "a note")
    fitted.write(tmp_path / "trust.json")
    assert Trust.read(tmp_path / "trust.json") == fitted


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "null"])
def test_what_is_no_fit_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match="no fit of countgen trust"):
        Trust.read(tmp_path / "x.json")


def test_another_version_is_told(tmp_path: Path) -> None:
    fit(rows(1, 500), NAMES).write(tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps(found | {"schema": 99}))
    with pytest.raises(UsageError, match="another version"):
        Trust.read(tmp_path / "x.json")


def test_too_little_to_fit_is_told() -> None:
    with pytest.raises(UsageError, match="at least 50"):
        fit(rows(1, 20), NAMES)
    sure = [row | {"judge": row["wanted"]} for row in rows(1, 200)]
    with pytest.raises(UsageError, match="counts otherwise"):
        fit(sure, NAMES)
    with pytest.raises(UsageError, match="not judged"):
        fit([row | {"judge": None} for row in rows(1, 60)], NAMES)
    with pytest.raises(UsageError, match="older version"):
        fit([{k: v for k, v in row.items() if k != "tries"} for row in rows(1, 60)], NAMES)


def test_nothing_is_certain() -> None:
    assert told(0.98) == "98% sure" and told(0.9999) == "99% sure"


def test_pocket_has_a_fit_for_its_own_counters_alone() -> None:
    from countgen.pocket import ROLES

    found = find_trust("pocket", ROLES["critic"], ROLES["verifier"])
    assert found is not None and found.judge == ROLES["judge"] and found.pictures > 100
    assert find_trust("pocket", "owlv2", ROLES["verifier"]) is None
    assert find_trust("sdxl", ROLES["critic"], ROLES["verifier"]) is None


def test_reported_prompts_are_for_checks_and_never_for_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, prompt: str, seed: int) -> str:
        more = {"method": "engine", "image": 0, "nouns": ["cat"], "outcome": "exact", "pre": 3.0}
        lines = [json.dumps({**row, **more, "id": prompt}) for row in rows(seed, 300)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.rank0.jsonl").write_text("\n".join(lines) + "\n")
        return str(tmp_path / name)

    dev, fresh = run("dev", "pocket-dev-001", 1), run("fresh", "pocket-small-001", 2)
    out = tmp_path / "trust.json"
    assert main(["trust", dev, "--check", fresh, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["check"]["pictures"] == 300 and Trust.read(out).pictures == 300
    assert main(["trust", fresh, "--out", str(tmp_path / "other.json")]) == 2
    assert "pocket-small-001 is a prompt that is reported" in capsys.readouterr().err
