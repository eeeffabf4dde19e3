"""What is kept of entries, read and proven: every byte is what was registered, and signed where that is demanded."""

from __future__ import annotations

from pathlib import Path

import msgspec

from learner_jax.contracts import ContractError, WeightManifest
from learner_jax.runtime import SHARED_MODE, crash_point, sync_path, write_durably
from serving_bridge.registry.entry import RegisteredFile
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError
from serving_bridge.registry.index import RegistryIndex
from serving_bridge.registry.kept_files import KeptFiles
from serving_bridge.registry.kept_weights import KeptWeights
from serving_bridge.registry.rows import Event, Standing, kept_file
from serving_bridge.registry.signatures import SIGNATURE_NAME, TrustedKeys, first_valid, key_of, sign
from serving_bridge.weights import StoreError, read_path, write_safetensors


class KeptEntries:
    """Files and weights of the entries of an index.

    Args:
      trusted: keys of which one must have signed an entry; None where signatures are not demanded.
    """

    def __init__(
        self, index: RegistryIndex, files: KeptFiles, weights: KeptWeights, trusted: TrustedKeys | None
    ) -> None:
        self._index, self._files, self._weights, self._trusted = index, files, weights, trusted

    def manifest(self, standing: Standing) -> WeightManifest:
        """The manifest of an entry's weights.

        Raises:
          RegistryError: they were removed.
          RegistryIntegrityError: they are not those that were registered, or no trusted key has signed them.
        """
        manifest, signed = self._read_manifest(standing)
        if self._trusted is not None:
            self._check_signed(standing, signed, self._trusted)
        return manifest

    def _read_manifest(self, standing: Standing) -> tuple[WeightManifest, dict[str, bytes]]:
        """The manifest, and what a signature of the entry is of: name -> content."""
        entry = standing.entry
        if not standing.has_weights:
            raise RegistryError(f"the weights of entry {entry.id} were removed; its row and reports stay")
        try:
            manifest, content = self._weights.store(entry.namespace).best_document(entry.weight_version)
        except (StoreError, ContractError) as error:
            raise RegistryIntegrityError(f"weights of entry {entry.id}: {error}") from error
        if manifest.content_sha256 != entry.content:
            raise RegistryIntegrityError(
                f"weights of entry {entry.id} have content {manifest.content_sha256}, expected {entry.content}"
            )
        return manifest, {"entry.json": standing.document.encode(), "manifest.json": content}

    def _check_signed(self, standing: Standing, signed: dict[str, bytes], trusted: TrustedKeys) -> None:
        entry = standing.entry
        try:
            kept = [self._files.read(file) for _, file in self._kept_with(standing, "signature")]
            first_valid(signed, kept, trusted)
        except RegistryIntegrityError as error:
            raise RegistryIntegrityError(f"entry {entry.id}: {error}") from error

    def _kept_with(self, standing: Standing, *kinds: str) -> list[tuple[Event, RegisteredFile]]:
        """Events of these kinds that keep a file, oldest first."""
        events = self._index.events(standing.entry.namespace, standing.entry.number)
        return [(event, kept_file(event)) for event in events if event.kind in kinds]

    def sign(self, standing: Standing, private_key: Path, *, password: str | None = None, actor: str) -> str:
        """Signs an entry, once every file of it has been hashed, and returns the key as signatures name it.

        Raises:
          RegistryError: the weights were removed, or the key can't be used.
          RegistryIntegrityError: a file is not what was registered.
        """
        entry = standing.entry
        _, signed = self._read_manifest(standing)
        if problems := self._damage(standing):
            raise RegistryIntegrityError("; ".join(problems))
        signature = sign(signed, private_key, password=password)
        file, key = self._files.keep(SIGNATURE_NAME, signature), key_of(signature)
        crash_point("registry.signature")
        body = {"key": key, "file": msgspec.to_builtins(file)}
        self._index.add_signature(entry.namespace, entry.number, body, actor=actor)
        return key

    def problems(self, standing: Standing) -> list[str]:
        """What of an entry is not as it was registered, or not signed where that is demanded: every byte is hashed."""
        found = self._damage(standing)
        if not found and standing.has_weights:
            try:
                self.manifest(standing)
            except RegistryError as error:
                found.append(str(error))
        return found

    def _damage(self, standing: Standing) -> list[str]:
        """What of an entry's files, reports and signatures among them, is not as it was registered."""
        found = []
        entry = standing.entry
        for file in (*entry.files, *(file for _, file in self._kept_with(standing, "report", "signature"))):
            try:
                self._files.read(file)
            except RegistryIntegrityError as error:
                found.append(f"entry {entry.id}: {error}")
        if standing.has_weights:
            try:
                self._weights.store(entry.namespace).verify(self._read_manifest(standing)[0])
            except (RegistryError, StoreError, ContractError) as error:
                found.append(f"entry {entry.id}: {error}")
        return found

    def export(self, standing: Standing, folder: Path, *, readme: str) -> None:
        """Writes an entry as a model folder in Hugging Face's layout, with its card as README.md.

        Raises:
          RegistryError: the folder is not empty.
          RegistryIntegrityError: a file is not what was registered; the folder is left without weights.
        """
        if folder.exists() and any(folder.iterdir()):
            raise RegistryError(f"{folder} is not empty: expected a new folder")
        manifest = self.manifest(standing)
        contents = {file.name: self._files.read(file) for file in standing.entry.files}
        store = self._weights.store(standing.entry.namespace)
        store.verify(manifest)
        # By the manifest that was checked: another may lie there by now.
        tensors = {changed.entry.name: changed.tensor for changed in read_path(store, [manifest])}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_durably(folder / name, content, mode=SHARED_MODE)
        write_durably(folder / "README.md", readme, mode=SHARED_MODE)
        write_safetensors(folder / "model.safetensors", tensors, metadata={"format": "pt"}, mode=SHARED_MODE)
        sync_path(folder)
