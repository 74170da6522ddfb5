"""Reading and writing files: atomic writing, and careful reading of what strangers made."""

from pluribus.files.atomic import atomic_file, atomic_folder, file_lock, place_folder
from pluribus.files.hostile import read_json, read_yaml, sha256

__all__ = ["atomic_file", "atomic_folder", "file_lock", "place_folder", "read_json", "read_yaml", "sha256"]
