"""Adapters brought through a cache, from a registry that can be slowed down or broken."""

import json
import threading

from safetensors.torch import load_file, save_file

from farm.keys import file_digest

WEIGHTS = "pytorch_lora_weights.safetensors"


def bring(cache, ref):
    return cache.acquire(ref).result(20)


def tamper(registry, ref, change):
    """Change a committed adapter's weights file and commit the change, as a bad writer would."""
    folder = f"{registry.store.url}/adapters/{ref.key}"
    tensors = load_file(f"{folder}/{WEIGHTS}")
    change(tensors)
    save_file(tensors, f"{folder}/{WEIGHTS}")
    record = json.loads(registry.store.read(f"adapters/{ref.key}/adapter.json"))
    record["files"][WEIGHTS] = file_digest(f"{folder}/{WEIGHTS}")
    registry.store.write_json(f"adapters/{ref.key}/adapter.json", record)


class Counted:
    """A registry that counts and can be slowed down or broken."""

    def __init__(self, registry):
        self.registry = registry
        self.fetched = []
        self.now = 0
        self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self.fault = None

    def fetch(self, job_key, local_folder, *, names=None):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            assert self.gate.wait(20)
            if self.fault is not None:
                raise self.fault
            self.fetched.append(job_key)
            return self.registry.fetch(job_key, local_folder, names=names)
        finally:
            self.now -= 1

    def record(self, job_key):
        return self.registry.record(job_key)

    def is_committed(self, job_key):
        return self.registry.is_committed(job_key)

    def revoked_keys(self):
        return self.registry.revoked_keys()
