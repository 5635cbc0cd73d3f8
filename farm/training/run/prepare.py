"""Prepares a run before it uses resources: its jobs, committed adapters, prior sets and plan.

Owns the way from a manifest (or from a run in the store) to a ``PreparedRun``. Reads photos once,
for their digests; starts no process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from farm.adapters.lookup import check_case
from farm.adapters.registry import Registry
from farm.base.device.presence import has_gpu
from farm.base.device.sharing import mps_is_running
from farm.base.names import Fetched, edition_of
from farm.base.tokens import prompt_reader
from farm.errors import UserError
from farm.intake.check import Progress, check_manifest
from farm.intake.job import PriorSpec
from farm.intake.manifest import Manifest, all_fit, read_manifest
from farm.intake.scoring import ScoringSettings
from farm.recipe import base_layers
from farm.storage import Store
from farm.training.lane.settings import Pictures
from farm.training.plan.base_facts import BaseFacts, base_facts
from farm.training.plan.calibration import find_calibration
from farm.training.plan.hardware import Hardware
from farm.training.plan.plan import Plan
from farm.training.plan.planner import make_plan
from farm.training.plan.shape import Workload, workload_of
from farm.training.priors.builder import missing_priors
from farm.training.run.failures import revoked_names
from farm.training.run.files import name_run, read_settings
from farm.training.run.job_files import read_run_jobs
from farm.training.run.job_set import JobSet, jobs_of
from farm.training.run.request import PreparedRun, RunBase, RunRequest

__all__ = ["prepare_run", "resume_run", "this_machine"]


def prepare_run(
    request: RunRequest,
    *,
    progress: Progress | None = None,
    fetched: Fetched | None = None,
    only_shown: bool = False,
) -> PreparedRun:
    """Check the manifest, name the jobs, find the committed ones, and plan the rest.

    Args:
        progress: called as photos are read.
        fetched: called as a base is downloaded.
        only_shown: leaves ``manifest_parquet`` out, which a plan does not show; writing Parquet
            imports pandas.

    Raises:
        ManifestError: if the manifest has faults (unless ``skip_faulty``).
        BaseModelError, PlanError: if the base cannot be loaded or does not fit the hardware.
        UserError: if a name differs only in case from one in the store.
    """
    store = Store(request.store)
    manifest, base = _read(request, fetched)
    check = check_manifest(manifest, resolution_px=base.resolution_px, progress=progress)
    if not request.skip_faulty:
        check.raise_for_errors()
    jobs = jobs_of(check, base)
    if not jobs.run:
        check.raise_for_errors()
        raise UserError(f"{request.manifest} has no subjects", "add at least one")
    check_case(Registry(store), (name for names in jobs.names.values() for name in names))
    faulty = {fault.subject for fault in check.errors if fault.subject}
    request = replace(
        request,
        scoring=request.scoring.over(manifest.scoring),
        quantization=request.quantization or manifest.quantization,
    )
    prepared = _prepared(request, store, base, jobs)
    return replace(
        prepared,
        num_rejected=len(faulty),
        manifest_parquet=None if only_shown else manifest.to_parquet(),
        warnings=check.warnings,
    )


def _read(request: RunRequest, fetched: Fetched | None) -> tuple[Manifest, RunBase]:
    """The manifest with all its faults, those of its modules' names included, and the base."""
    read = partial(
        read_manifest,
        request.manifest,
        strict=False,
        recipe=request.recipe,
        **base_layers(edition_of(request.base)),
        reader=prompt_reader(request.base, request.revision),
    )
    manifest = read()
    # known only now: a manifest that cannot be read costs no download
    facts = base_facts(request.base, request.revision, fetched)
    if facts.recipe:
        read = partial(read, family_recipe=facts.recipe)
        manifest = read()
    if not all_fit(manifest, facts.modules):
        manifest = read(modules=facts.modules)
    return manifest, _run_base(request.base, facts)


def resume_run(request: RunRequest, run_id: str) -> PreparedRun:
    """Prepare a run from its files in the store; the manifest is not read again."""
    store = Store(request.store)
    jobs = JobSet.of(read_run_jobs(store, run_id).assignments())
    asked = read_settings(store, run_id).get("request") or {}
    kept = ScoringSettings(**asked.get("scoring", {}))
    request = replace(
        request,
        scoring=request.scoring.over(kept),
        quantization=request.quantization or asked.get("quantization"),
    )
    facts = base_facts(request.base, request.revision)
    return _prepared(request, store, _run_base(request.base, facts), jobs)


def _run_base(name: str, facts: BaseFacts) -> RunBase:
    return RunBase(name, facts.fingerprint, facts.resolution_px, facts.memory, facts.recipe)


def _prepared(request: RunRequest, store: Store, base: RunBase, jobs: JobSet) -> PreparedRun:
    registry = Registry(store)
    committed = frozenset(registry.committed_among(jobs.run))
    revoked = revoked_names(registry.revoked_keys(), jobs.run) if committed else {}
    left = jobs.left(committed)
    priors = missing_priors(store, jobs.priors(left))
    return PreparedRun(
        request=request,
        run_id=name_run(jobs.names),
        store=store,
        base=base,
        jobs=jobs.run,
        committed=committed,
        priors=tuple(priors),
        plan=_plan(request, base, jobs, left, priors) if left else None,
        revoked=tuple(sorted(name for names in revoked.values() for name in names)),
        num_revoked=len(revoked),
    )


def _plan(
    request: RunRequest,
    base: RunBase,
    jobs: JobSet,
    left: Sequence[int],
    priors: Sequence[PriorSpec],
) -> Plan:
    cards = Pictures(0, 0)
    if request.make_judge is not None:
        cards = request.make_judge(request.scoring).pictures(base.name, jobs.kinds(left))
    workload = _workload(request, base, jobs, left, priors, cards)
    hardware = request.hardware or this_machine()
    hardware = replace(hardware, calibration=find_calibration(hardware.gpu_name))
    # the facts were read on a CPU, in float32; lanes on GPUs load the base in half precision
    memory = base.memory.halved() if hardware.has_gpu else base.memory
    memory = memory.quantized(request.quantization)
    make = partial(
        make_plan,
        memory,
        workload,
        slots=request.slots,
        fraction=request.gpu_fraction,
        lanes=request.lanes if workload.uses_ray else 1,
        checkpointing=request.checkpointing,
    )
    if hardware.nodes_are_a_limit and hardware.num_nodes > 1:
        one = make(replace(hardware, num_nodes=1))
        filled = math.ceil(len(left) / (one.lanes_per_node * one.slots))
        hardware = replace(hardware, num_nodes=min(hardware.num_nodes, filled))
    plan = make(hardware)
    return replace(plan, notes=(*plan.notes, *cards.notes))


def _workload(
    request: RunRequest,
    base: RunBase,
    jobs: JobSet,
    left: Sequence[int],
    priors: Sequence[PriorSpec],
    cards: Pictures,
) -> Workload:
    """The run's whole work, samples and quality cards included."""
    generated = [spec for spec in priors if not spec.is_brought]
    training = workload_of(
        map(jobs.recipe, left),
        base.resolution_px,
        num_prior_images=sum(spec.num_images for spec in generated),
    )
    how = request.samples
    samples = how.per_prompt * sum(jobs.num_prompts[number] for number in left)
    return replace(
        training,
        num_crops=jobs.num_crops(left),
        picture_rows=samples * how.steps * (2 if how.guidance > 1 else 1) + cards.rows,
        num_pictures=samples + cards.num,
        uses_ray=request.executor == "ray",
    )


def this_machine() -> Hardware:
    """The hardware of this machine."""
    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if not has_gpu():
        return Hardware(None, 0, 0, cpus)
    import torch

    properties = torch.cuda.get_device_properties(0)
    return Hardware(
        properties.name,
        properties.total_memory,
        torch.cuda.device_count(),
        cpus,
        uses_mps=mps_is_running(),
    )
