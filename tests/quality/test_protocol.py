"""The paper's prompts, the prompts of the synthetic world, and the cost of a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farm.base.embedded.world.words import CLASS_NOUNS, SCENERY
from farm.quality.intervals import MIN_PICTURES
from farm.quality.protocol import (
    LIVE_TEMPLATES,
    OBJECT_TEMPLATES,
    SHORT_SHARE,
    TRAINING_COST,
    ScoringBudget,
    protocol_for,
)
from farm.recipe import Recipe


def test_the_papers_lists_are_whole() -> None:
    assert len(set(OBJECT_TEMPLATES)) == len(OBJECT_TEMPLATES) == 25
    assert len(set(LIVE_TEMPLATES)) == len(LIVE_TEMPLATES) == 25
    assert all(template.count("{}") == 1 for template in OBJECT_TEMPLATES + LIVE_TEMPLATES)


def test_the_kind_follows_from_the_noun_unless_given() -> None:
    assert protocol_for("some/sd", "dog").templates is LIVE_TEMPLATES
    assert protocol_for("some/sd", "stuffed animal").templates is LIVE_TEMPLATES
    assert protocol_for("some/sd", "backpack").templates is OBJECT_TEMPLATES
    assert protocol_for("some/sd", "stuffed animal", "object").templates is OBJECT_TEMPLATES


def test_the_scorer_reads_the_prompt_without_the_identifier() -> None:
    pair = protocol_for("some/sd", "dog").prompts(1, "sks", "dog")[0]
    assert pair.prompt == "a sks dog in the jungle"
    assert pair.text == "a dog in the jungle"


def test_the_embedded_base_is_asked_only_what_it_knows() -> None:
    protocol = protocol_for("embedded", "cat")
    assert {template.removeprefix("a {} ") for template in protocol.templates} == set(SCENERY)
    assert all(prompt.split()[1] in CLASS_NOUNS for prompt in protocol.unrelated)
    assert not any(" cat " in prompt for prompt in protocol.unrelated)


@given(st.integers(1, 120))
def test_a_budget_spreads_over_the_whole_list(num: int) -> None:
    prompts = protocol_for("some/sd", "dog").prompts(num, "sks", "dog")
    assert len(prompts) == num
    counts = {prompt.prompt: 0 for prompt in prompts}
    for prompt in prompts:
        counts[prompt.prompt] += 1
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(counts) == min(num, 25)


@given(st.integers(1, 3000), st.integers(0, 2), st.floats(0.02, 0.5))
def test_a_budget_stays_within_its_share_of_training(
    steps: int, prior_rows: int, share: float
) -> None:
    recipe = Recipe(steps=steps, prior_rows=prior_rows)
    budget = ScoringBudget.within(recipe, share)
    if budget is None:
        return
    trained = steps * (1 + prior_rows) * TRAINING_COST
    is_least = budget.num_pictures == 3 * MIN_PICTURES
    assert budget.denoiser_rows <= (max(share, SHORT_SHARE) if is_least else share) * trained
    assert budget.num_prompt_pictures >= MIN_PICTURES
    assert budget.num_class_pictures >= MIN_PICTURES


def test_a_usual_recipe_is_scored_a_short_one_by_the_smallest_card_and_a_tiny_one_is_not() -> None:
    assert ScoringBudget.within(Recipe()).num_pictures > 3 * MIN_PICTURES
    assert ScoringBudget.within(Recipe(steps=200)).num_pictures == 3 * MIN_PICTURES
    assert ScoringBudget.within(Recipe(), 0.0) is None
    assert ScoringBudget.within(Recipe(steps=10)) is None


def test_the_full_protocol_is_the_papers() -> None:
    assert ScoringBudget.full().num_prompt_pictures == 25 * 4
