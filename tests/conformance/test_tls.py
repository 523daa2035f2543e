"""TLS as http.c does it: only a certificate that the bundle vouches for, for this very host, is spoken to."""

import datetime
import errno
import ipaddress
import json
import os
import pathlib
import socket
import ssl
import subprocess
import threading
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = pathlib.Path(__file__).resolve().parents[2]
GET = pathlib.Path(os.environ.get("BUILD", ROOT / "build")) / "tests" / "tools" / "http_get"
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def make_certificate(folder, alternative, days=1):
    """A self-signed certificate and its key in two files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.utcnow()
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=30))
    builder = builder.not_valid_after(now + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    cert = builder.sign(key, hashes.SHA256())
    folder.joinpath("cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    folder.joinpath("key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


class Server:
    """Answers one request, and remembers what it heard."""

    def __init__(self, folder, newest=ssl.TLSVersion.TLSv1_3):
        self.heard = b""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else this side itself would refuse old versions
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.context.minimum_version = ssl.TLSVersion.TLSv1
            self.context.maximum_version = newest
        self.context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        raw, _ = self.listener.accept()
        try:
            with self.context.wrap_socket(raw, server_side=True) as connection:
                self.heard = connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        except OSError:  # ssl.SSLError is one: refused by the client, as most tests want
            raw.close()

    def get(self, bundle):
        """The answer of http_get to this server's own address."""
        command = [GET, f"https://127.0.0.1:{self.port}/"] + ([bundle] if bundle else [])
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
        self.thread.join(timeout=30)
        self.listener.close()
        return json.loads(done.stdout)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_trusted(tmp_path, newest):
    make_certificate(tmp_path, LOOPBACK)
    server = Server(tmp_path, newest)
    answer = server.get(tmp_path / "cert.pem")
    assert (answer["result"], answer["status"], answer["body"], answer["tls_verified"]) == (0, 200, "ok", True)
    assert server.heard.startswith(b"GET / HTTP/1.1\r\n")


def refused(server, bundle):
    answer = server.get(bundle)
    assert server.heard == b"", "something was said to a server that is not trusted"
    assert answer["status"] == 0 and not answer["tls_verified"] and answer["body"] == "" and answer["why"]
    return -answer["result"]


def test_unknown_issuer(tmp_path):
    make_certificate(tmp_path, LOOPBACK)
    assert refused(Server(tmp_path), None) == errno.EKEYREJECTED


def test_other_host(tmp_path):
    make_certificate(tmp_path, x509.DNSName("kms.example"))
    assert refused(Server(tmp_path), tmp_path / "cert.pem") == errno.EKEYREJECTED


def test_expired(tmp_path):
    make_certificate(tmp_path, LOOPBACK, days=-1)
    assert refused(Server(tmp_path), tmp_path / "cert.pem") == errno.EKEYREJECTED


def test_old_version(tmp_path):
    make_certificate(tmp_path, LOOPBACK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server = Server(tmp_path, ssl.TLSVersion.TLSv1_1)
    assert refused(server, tmp_path / "cert.pem") == errno.EPROTO
