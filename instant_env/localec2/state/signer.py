"""The signatures that EC2 Instance Connect puts on the keys it pushes, by a certificate authority of our own.

IMDS serves a signer's certificate chain, OCSP responses for it, and keys that it signed. What Amazon's
package ec2-instance-connect (eic_parse_authorized_keys) checks of them holds here too, but for one thing: a
guest trusts this authority only when its certificate, the second one of ``signer-cert``, is put into the
guest's ``/etc/ssl/certs`` as ``localec2_Instance_Connect_CA.pem``.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from instant_env.errors import InstantEnvError
from instant_env.files import write_atomically
from instant_env.localec2.network.metadata import Node

CA_NAME = "localec2 Instance Connect CA"
#: Certificates begin this long before now, for guests whose clocks are behind, and outlast any server.
BACKDATED, CERTIFICATE_LIFETIME = timedelta(days=2), timedelta(days=3650)
OCSP_LIFETIME = timedelta(days=7)
#: eic_parse_authorized_keys: ``-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32``.
PSS_SALT_BYTES = 32


class SignerError(InstantEnvError):
    """The signer's file is not one."""


@dataclass(frozen=True)
class Signer:
    """Two keys and their certificates."""

    ca_key: ec.EllipticCurvePrivateKey
    ca: x509.Certificate
    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @classmethod
    def at(cls, path: Path, region: str, now: datetime) -> Signer:
        """The signer kept in a file (mode 0600); made when there is none. Takes up to a second then.

        Raises SignerError for a file that is damaged.
        """
        if path.exists():
            return cls._read(path)
        signer = cls._generate(region, now)
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        parts = [
            signer.ca_key.private_bytes(pem, *private), signer.key.private_bytes(pem, *private),
            signer.chain.encode(),
        ]  # fmt: skip
        write_atomically(path, b"".join(parts))
        return signer

    @classmethod
    def _read(cls, path: Path) -> Signer:
        hint = f"remove {path}: another signer is made then"
        try:
            content = path.read_bytes()
            first, second = (
                serialization.load_pem_private_key(part + b"-----END PRIVATE KEY-----\n", None)
                for part in content.split(b"-----END PRIVATE KEY-----\n")[:2]
            )
            certificate, ca = x509.load_pem_x509_certificates(content)
        except (OSError, ValueError) as error:
            raise SignerError(f"cannot read {path}: {error}", hint=hint) from error
        if not isinstance(first, ec.EllipticCurvePrivateKey) or not isinstance(second, rsa.RSAPrivateKey):
            raise SignerError(f"{path} holds other keys than a signer's", hint=hint)
        return cls(first, ca, second, certificate)

    @classmethod
    def _generate(cls, region: str, now: datetime) -> Signer:
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CA_NAME)])
        ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
        common = (
            x509.CertificateBuilder()
            .issuer_name(ca_name)
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + CERTIFICATE_LIFETIME)
        )
        ca = (
            common.subject_name(ca_name)
            .public_key(ca_key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(ca_id, critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        name = f"managed-ssh-signer.{region}.amazonaws.com"
        certificate = (
            common.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False
            )
            .sign(ca_key, hashes.SHA256())
        )
        return cls(ca_key, ca, key, certificate)

    @property
    def chain(self) -> str:
        """The certificate and its issuer's, PEM."""
        pem = serialization.Encoding.PEM
        return (self.certificate.public_bytes(pem) + self.ca.public_bytes(pem)).decode()

    def sign(self, lines: str) -> str:
        """The signature of lines that end with a newline, base64."""
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), PSS_SALT_BYTES)
        return base64.b64encode(self.key.sign(lines.encode(), pss, hashes.SHA256())).decode()

    def nodes(self, now: datetime) -> Node:
        """What IMDS has beside the keys: ``signer-cert`` and ``signer-ocsp/<SHA-1 of the certificate>``."""
        response = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                self.certificate, self.ca, hashes.SHA1(),  # noqa: S303 - an identifier, as OCSP has it
                ocsp.OCSPCertStatus.GOOD, now - BACKDATED, now + OCSP_LIFETIME, None, None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, self.ca)
            .sign(self.ca_key, hashes.SHA256())
        )  # fmt: skip
        staple = base64.b64encode(response.public_bytes(serialization.Encoding.DER)).decode()
        fingerprint = self.certificate.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303
        return {"signer-cert": self.chain, "signer-ocsp": {fingerprint: staple}}


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
