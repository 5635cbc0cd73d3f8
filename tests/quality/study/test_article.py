"""The article's complete run on a tiny base with random weights."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from farm.quality.protocol import ScoringBudget
from farm.quality.scorer import ClipScorer
from farm.quality.study.article import NOUNS, ArticleStudy, run_article_study


def test_the_articles_run_reports_every_step(tmp_path: Path, clip_folder: Path) -> None:
    study = ArticleStudy(
        steps=4,
        every=2,
        num_photos=2,
        num_prior_images=3,
        rank=2,
        opening_candidates=2,
        shown=ScoringBudget(steps=2, guidance=1.0),
        budget=ScoringBudget(4, 4, 4, steps=2, guidance=1.0),
    )
    scorer = ClipScorer(clip_folder)
    result = run_article_study("tiny", study, tmp_path, scorer=scorer, say=lambda text: None)
    page = (tmp_path / "README.md").read_text()
    assert "is the best of 2 seeds" in page
    with Image.open(tmp_path / "opening.png") as opening:
        assert opening.width > 8 * 128
    for noun in NOUNS:
        steps = result["subjects"][noun]["by_step"]
        assert [row["step"] for row in steps] == [0, 2, 4]
        assert steps[0]["scores"]["drift"]["mean"] < 1e-5  # an untrained adapter changes nothing
        assert steps[-1]["scores"]["drift"]["mean"] > 1e-6
        with Image.open(tmp_path / f"{noun}.gif") as animation:
            assert animation.n_frames == 3
        for kind in ("photos", "steps", "gallery", "class"):
            assert f"({noun}-{kind}.png)" in page
            assert (tmp_path / f"{noun}-{kind}.png").stat().st_size > 1000
