"""The studies' pages in Markdown: tables, claims, and how to repeat them.

Owns wording and layout; all numbers come from the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["article_page", "prior_page"]

BETTER = {
    "fidelity": "higher", "prompt": "higher", "pres": "lower", "div": "higher", "poses": "higher",
    "drift": "lower",
}  # fmt: skip


def prior_page(result: Mapping[str, Any], metrics: Mapping[str, str], command: str) -> str:
    """The page of ``farm study prior``; ``command`` repeats the study."""
    study, pose = result["study"], result["pose_accuracy"]
    num_adapters = 2 * study["num_subjects"] * study["num_seeds"]
    lines = [
        "# Does prior preservation keep the class?",
        "",
        "Written by `farm study prior`; all numbers are in `results.json`.",
        "",
        f"{study['num_subjects']} individuals of the synthetic world, each with "
        f"{study['num_photos']} photos in a sitting pose, were trained with and without prior "
        f"preservation and with {study['num_seeds']} seeds each: {num_adapters} adapters in the "
        f"slots of one trainer. "
        f"Recipe: {study['steps']} steps, rank {study['rank']}, learning rate "
        f"{study['learning_rate']:g}, λ = {study['prior_weight']:g}, adapters on "
        f"`{'`, `'.join(study['target_modules'])}`, "
        f"{study['num_prior_images']} class images.",
        "",
        "![The class, with and without](arms.png)",
        "",
        f"## After {study['steps']} steps",
        "",
        "| score | better | untouched base | without | with | with − without | intervals |",
        "|---|---|---|---|---|---|---|",
        *(_prior_row(result, metric, title) for metric, title in metrics.items()),
        "",
        "Means over individuals with 95 % intervals (bootstrap over individuals, seeds averaged). "
        '"Poses of the class" is the number of equally frequent poses with the measured entropy, '
        f"at most {result['max_poses']}. Poses are classified by a linear probe on the scorer's "
        "embedding, fitted to rendered images; its accuracy on "
        f"{pose['num']} held-out images is {100 * pose['accuracy']:.0f} % (chance: "
        f"{100 / result['max_poses']:.0f} %).",
        "",
        "## The article's claims",
        "",
        *_claim_lines(result["claims"]),
        "",
        "## By training step",
        "",
        "![Scores by step](by-step.png)",
        "",
        "![The class by step](steps.png)",
        "",
        *_how_to_repeat(result, command),
    ]
    return "\n".join(lines)


def _how_to_repeat(result: Mapping[str, Any], command: str) -> list[str]:
    budget = result["budget"]
    return [
        "## Repeat the study",
        "",
        "```sh",
        command,
        "```",
        "",
        f"Each adapter is scored on {budget['num_prompt_pictures']} images of the subject, "
        f"{budget['num_class_pictures']} of the class and {budget['num_drift_pictures']} of other "
        f"prompts, with {budget['steps']} denoising steps each and the same seeds for both arms "
        f"and the base. Total: {result['seconds']['total']:.0f} s on {result['hardware']} "
        f"({result['seconds']['training']:.0f} s of training, "
        f"{result['seconds']['examining']:.0f} s of generation and scoring). "
        f"Base fingerprint `{result['base']['fingerprint'][:16]}`.",
        "",
    ]


def _prior_row(result: Mapping[str, Any], metric: str, title: str) -> str:
    contrast = result["contrasts"][metric]
    base = result["curves"]["with"][metric][0]["mean"]
    if "difference" not in contrast:
        return f"| {title} | {BETTER[metric]} | {base:.3f} | {contrast['without']:.3f} | {contrast['with']:.3f} | – | – |"  # noqa: E501
    apart = "overlap" if contrast["intervals_overlap"] else "**apart**"
    cells = [_interval(contrast[key]) for key in ("without", "with", "difference")]
    return f"| {title} | {BETTER[metric]} | {base:.3f} | {' | '.join(cells)} | {apart} |"


def _interval(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _claim_lines(claims: Mapping[str, Any]) -> list[str]:
    lines = []
    for claim, found in claims.items():
        if isinstance(found, bool):
            lines.append(f"- {'**Holds**' if found else '**Does not hold here**'}: {claim}.")
        elif found is not None:
            lines.append(f"- {claim}: {100 * found:.1f} %.")
    return lines


def article_page(result: Mapping[str, Any]) -> str:
    """The page of ``farm study article``."""
    lines = [
        "# The article's run",
        "",
        "Written by `farm study article`; all numbers are in `results.json`.",
        "",
        "One particular cat and one decorative mushroom, trained together in one trainer "
        f"({result['study']['steps']} steps, rank {result['study']['rank']}, learning rate "
        f"{result['study']['learning_rate']:g} falling to zero, with prior preservation at "
        f"λ = {result['study']['prior_weight']:g}).",
        "",
        "![Photos, and images generated with the adapters](opening.png)",
        "",
        *_opening_lines(result["opening"]),
    ]
    for noun, found in result["subjects"].items():
        lines += [
            f"## The {noun}",
            "",
            f"![Photos of the {noun}]({noun}-photos.png)",
            "",
            f"### `A [V] {noun}`, step by step",
            "",
            f"![By step]({noun}-steps.png)",
            "",
            f"![Animation]({noun}.gif)",
            "",
            "| step | fidelity (CLIP-I) | prompt (CLIP-T) | PRES | DIV | drift |",
            "|---|---|---|---|---|---|",
        ]
        for row in found["by_step"]:
            cells = [_score(row["scores"].get(name)) for name in
                     ("clip_i", "clip_t", "pres", "div", "drift")]  # fmt: skip
            lines.append(f"| {row['step']} | {' | '.join(cells)} |")
        lines += [
            "",
            f"Verdict: **{found['verdict']['label']}**. {' '.join(found['verdict']['reasons'])}",
            "",
            f"### The same {noun} in different places and styles",
            "",
            f"![Gallery]({noun}-gallery.png)",
            "",
            f"### Random {noun}s stay random",
            "",
            f"![Random {noun}s]({noun}-class.png)",
            "",
        ]
    lines += [f"Total: {result['seconds']['total']:.0f} s on {result['hardware']}.", ""]
    return "\n".join(lines)


def _opening_lines(opening: Mapping[str, Any]) -> list[str]:
    return [
        "The prompts above name a pose and a place, such as `a [V] cat sitting in the snow`. Each "
        f"image shown is the best of {opening['candidates']} seeds: first by the "
        "mark reader, then by its similarity to the photos. The mark reader finds the subject's "
        f"mark, its kind and its colour, on {100 * opening['shown_with_mark']:.0f} % of the shown "
        f"images and on {100 * opening['all_with_mark']:.0f} % of all seeds' images. The images "
        "below are not selected.",
        "",
    ]


def _score(value: Mapping[str, Any] | None) -> str:
    return _interval(value) if value and "low" in value else "–"
