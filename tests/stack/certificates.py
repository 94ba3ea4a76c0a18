"""Authorities of the tests' own, and what they sign: made with openssl."""

from __future__ import annotations

import shutil
import subprocess

import pytest


class Authority:
    """One whose certificate is ``.certificate``."""

    def __init__(self, folder, name):
        if shutil.which("openssl") is None:
            pytest.skip("openssl, which makes the certificates, is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        is_one = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
        self.certificate, self._key = self._make(name, is_one, ())

    def sign(self, name):
        """A certificate for loopback, and its key."""
        signed_by = ("-CA", self.certificate, "-CAkey", self._key)
        is_for = ("basicConstraints=critical,CA:FALSE", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        return self._make(name, is_for, signed_by)

    def _make(self, name, extensions, signed_by):
        certificate, key = (self._folder / f"{name}.{suffix}" for suffix in ("pem", "key"))
        done = subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", certificate, *signed_by,
                *(word for extension in extensions for word in ("-addext", extension)),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"this openssl cannot make the certificates: {done.stderr.strip().splitlines()[-1]}")
        return certificate, key
