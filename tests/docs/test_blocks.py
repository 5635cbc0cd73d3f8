"""Every code block of README and docs does what its page says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.cli.terminal import foreign_lines
from support.docs.commands import PARSERS, WrongCommand, check_line, has_option
from support.docs.pages import Block, all_blocks, blocks_in, command_lines, inline_code
from support.docs.program import SMALL, SMALL_SHARE, SMALL_STUDY, shrink_recipe
from support.docs.workplace import BlockFailed, PageRun

if TYPE_CHECKING:
    from conftest import Documentation

BLOCKS = all_blocks()
PLACES = [block.place for block in BLOCKS]


@pytest.mark.parametrize("block", BLOCKS, ids=PLACES)
def test_every_block_has_a_kind(block: Block) -> None:
    assert block.kind


@pytest.mark.parametrize("block", BLOCKS, ids=PLACES)
def test_every_command_is_one_that_its_program_takes(block: Block) -> None:
    if block.kind not in ("sh", "parsed"):
        pytest.skip("holds no commands, or shows their output too")
    for line in command_lines(block.text):
        if block.kind == "parsed" or line.startswith("farm "):
            check_line(line)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", BLOCKS, ids=PLACES)
def test_every_block_works(block: Block, documentation: Documentation) -> None:
    if block.kind == "parsed":
        pytest.skip(f"needs a {block.needs}; its commands are checked against their parsers")
    if block.kind == "text":
        pytest.skip("is a listing or a formula")
    if block.kind == "nginx":
        check_nginx(block.text)
    else:
        documentation.reach(block)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_command_of_readme_prints_a_line_of_another_library(
    documentation: Documentation,
) -> None:
    """Among them are two runs on Ray."""
    errors = documentation.read_readme().errors
    assert foreign_lines(errors) == []
    assert len(re.findall(r"^[\w-]+: committed$", errors, re.MULTILINE)) == 4


def check_nginx(text: str) -> None:
    """nginx accepts it, where there is one, and its limits are those of the endpoint."""
    from farm.serving.access.limits import Limits
    from farm.serving.http.connections import ConnectionLimits

    uncommented = re.sub(r"#.*", "", text)
    *directives, rest = uncommented.split(";")
    assert not rest.strip(), f"no semicolon after {rest.strip()}"
    values = {}
    for directive in directives:
        name, value = directive.split(None, 1)
        assert re.fullmatch(r"[a-z_]+", name), directive
        values[name] = value.strip()
    limits, connections = Limits(), ConnectionLimits()
    assert values["client_max_body_size"] == f"{limits.max_body_bytes // 1024}k"
    assert values["client_body_timeout"] == f"{limits.body_timeout_s:g}s"
    assert values["client_header_timeout"] == f"{connections.head_timeout_s:g}s"
    assert values["send_timeout"] == f"{connections.write_timeout_s:g}s"
    # nginx closes idle connections before the endpoint does
    assert float(values["keepalive_timeout"].removesuffix("s")) < connections.idle_timeout_s
    count, size = values["large_client_header_buffers"].removesuffix("k").split()
    assert int(count) * int(size) * 1024 == connections.max_head_bytes
    assert float(values["proxy_read_timeout"].removesuffix("s")) > limits.deadline_s
    if (nginx := shutil.which("nginx")) is not None:
        _run_nginx_check(nginx, text)


def _run_nginx_check(nginx: str, text: str) -> None:
    server = "server { listen 127.0.0.1:8080; location / { proxy_pass http://127.0.0.1:8000; } }"
    with TemporaryDirectory() as folder:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        config = Path(folder) / "nginx.conf"
        config.write_text(
            f"error_log {folder}/log; pid {folder}/pid; events {{}}\n"
            f"http {{ access_log off; {paths}\n{text}\n{server} }}\n"
        )
        command = [nginx, "-t", "-c", str(config), "-p", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# -- code in sentences ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "code"),
    [(place, code) for place, code in inline_code() if re.match(r"farm \w|--\w", code)],
)
def test_commands_and_options_in_sentences_exist(place: str, code: str) -> None:
    words = code.split()
    names = [word for word in words if word.startswith("--")]
    unknown = [name for name in names if not has_option(name.split("=")[0])]
    assert not unknown, f"{place}: {code}"


# -- the tests' own claims -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "    farm check photos\n",  # indented: it has no kind
        "```\nfarm check photos\n```\n",
        "```ruby\nputs 1\n```\n",
        "```yaml\nversion: 1\n```\n",  # a file without a name
        "```sh needs=luck\nfarm check photos\n```\n",
    ],
)
def test_a_block_without_a_known_kind_is_refused(text: str) -> None:
    (block,) = blocks_in(f"A sentence.\n\n{text}", "page.md")
    with pytest.raises(ValueError, match=r"page\.md:[34]"):
        assert block.kind


@pytest.mark.parametrize(
    "line",
    [
        "farm run photos/ --stores work",
        "farm run photos/ --set step=300",
        "farm check",
        "farm train photos/",
        "ray up cluster.yaml --spot",
        "serve deploy jobs/serve.yaml --replicas 2",
        'farm submit m.yaml --store s3://b --with "--gpuz A100"',
        "export FARM_STORE=work && farm plan m.yaml --gpu",
        "kubectl apply -f farm.yaml",
    ],
)
def test_a_command_that_its_program_refuses_fails(line: str) -> None:
    with pytest.raises((WrongCommand, ValueError)):
        check_line(line)


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("sh", "test -d photos && cd photos\ncat nothing\n", "nothing"),
        ("console", "$ echo one two\none three\n", "the page says:\none three"),
        ("python", "answer = 6 * 7\nassert answer == 41\n", "AssertionError"),
    ],
)
def test_a_block_that_does_not_do_what_it_says_fails(
    documentation: Documentation, language: str, text: str, message: str
) -> None:
    page = PageRun(documentation.clone)
    try:
        with pytest.raises(BlockFailed, match=re.escape(message)):
            page.run(Block("page.md", 1, language, "", "", text))
    finally:
        page.close()


def test_what_differs_each_time_is_carried_to_later_commands(documentation: Documentation) -> None:
    page = PageRun(documentation.clone)
    text = '$ echo "  0.3 s  key_$$_x made"\n  4.0 s  key_3f9c…_… made\n$ echo 3f9c…\n3f9c…\n'
    page.run(Block("page.md", 1, "console", "", "", text))
    assert re.search(r"key_(\d+)_x made\n\1\n", page.output)


def test_a_forked_program_does_what_a_started_one_does(documentation: Documentation) -> None:
    line = "cd jobs && FARM_STORE=../nothing farm list"
    messages = []
    for warm in (False, True):
        page = PageRun(documentation.clone, prelude=(". .venv/bin/activate",), warm=warm)
        printed = page.run_line("farm --version && ! farm list --store && echo $?")
        with pytest.raises(BlockFailed, match="nothing does not exist") as failed:
            page.run_line(line)
        messages.append((printed, page.output, str(failed.value)))
    assert messages[0] == messages[1]
    if sys.platform == "linux" and not torch.cuda.is_available():
        assert Path(documentation.clone.warm()).is_socket()


def test_the_smaller_defaults_are_defaults_of_real_options() -> None:
    def check(command: Any, defaults: dict[str, Any]) -> None:
        for name, value in defaults.items():
            if name in getattr(command, "commands", {}):
                check(command.commands[name], value)
            else:
                assert name in {parameter.name for parameter in command.params}

    check(PARSERS["farm"](), SMALL)


def test_the_smaller_recipe_changes_what_the_embedded_base_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from farm import recipe

    before = recipe.BASE_RECIPES
    monkeypatch.setattr(recipe, "BASE_RECIPES", deepcopy(before))
    shrink_recipe()
    small = recipe.BASE_RECIPES["embedded"]
    assert dict(small.items() - before["embedded"].items()) == {"num_prior_images": 4}
    assert recipe.Recipe(**small).num_prior_images == 4


def test_the_smaller_demo_makes_quality_cards() -> None:
    from farm.cli.commands.demo import RECIPE
    from farm.quality.protocol import ScoringBudget
    from farm.recipe import BASE_RECIPES, Recipe

    fields = {**BASE_RECIPES["embedded"], **RECIPE, "steps": SMALL["demo"]["steps"]}
    assert ScoringBudget.within(Recipe(**fields), SMALL_SHARE) == ScoringBudget.least()


def test_the_smaller_study_sets_real_fields() -> None:
    from dataclasses import fields

    from farm.quality.study.prior import PriorStudy

    assert set(SMALL_STUDY) <= {field.name for field in fields(PriorStudy)}
