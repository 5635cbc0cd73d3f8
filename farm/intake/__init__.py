"""Manifests and photos, and the check that finds every fault at once.

read_manifest(url) -> Manifest            every shorthand resolved; all faults in one error
check_manifest(manifest) -> CheckReport   every photo decoded and checked
job_spec(subject, digests, …) -> JobSpec  a subject on a base, named by its content
"""
