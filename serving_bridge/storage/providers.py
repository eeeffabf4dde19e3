"""How fsspec's client of each kind of object storage is made, and what the errors of its package mean."""

from __future__ import annotations

import importlib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from serving_bridge.storage.objects import StorageTimeouts

#: Of files that are uploaded in parts, several at a time, which are held in memory.
PART_BYTES = 32 << 20
#: Nothing is remembered between requests.
_NO_CACHES: Mapping[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
_RANGE, _UNCONDITIONAL = frozenset({"InvalidRange", "416"}), frozenset({"NotImplemented", "501"})
_NO_BUCKET = "there is no such bucket: make it, or correct the URL"


@dataclass(frozen=True)
class Provider:
    """One kind of storage.

    Attributes:
      package: what pip installs for it.
      make: (scheme, timeouts) -> fsspec's client, without tries of its own, every wait bounded.
      code: the code that storage gave its refusal; empty where it gave none.
      refused: codes that no further try changes -> what to look at.
      credentials: variables to look at where storage refuses them.
      not_given: names of errors about what the client was given: no request was made.
      missing: what to set then.
      upload: options of an upload from a file.
    """

    package: str
    make: Callable[[str, StorageTimeouts], Any]
    code: Callable[[BaseException], str]
    refused: Mapping[str, str] = field(default_factory=dict)
    credentials: str = "those of its fsspec package"
    not_given: frozenset[str] = frozenset()
    missing: str = ""
    upload: Mapping[str, Any] = field(default_factory=dict)

    def refusal(self, error: BaseException) -> str | None:
        """Why no further try can succeed, None if one may."""
        code = self.code(error)
        if code in self.refused:
            return self.refused[code]
        if isinstance(error, PermissionError) or code in ("401", "403"):
            return f"the credentials were refused: look at {self.credentials} and rights ({said(error)})"
        if type(error).__name__ in self.not_given:
            return f"{said(error)}: {self.missing}"
        return None

    def is_beyond_end(self, error: BaseException) -> bool:
        """Whether a range was asked for that begins where the object ends."""
        return self.code(error) in _RANGE

    def is_unconditional(self, error: BaseException) -> bool:
        """Whether storage says that it knows no conditional writes."""
        return self.code(error) in _UNCONDITIONAL


def provider_of(scheme: str) -> Provider:
    """Of URLs with this scheme; of an unknown one what holds for every client of fsspec's."""
    return _PROVIDERS.get(scheme) or Provider(f"fsspec's package for {scheme}://", _plain, lambda error: "")


def said(error: BaseException) -> str:
    """An error in one line of bounded length."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was made from."""
    yield from (one for one in (error, error.__cause__, error.__context__) if one is not None)


def _plain(scheme: str, timeouts: StorageTimeouts) -> Any:
    return importlib.import_module("fsspec").filesystem(scheme, **_NO_CACHES)


def _s3(scheme: str, timeouts: StorageTimeouts) -> Any:
    bounds = {
        "connect_timeout": timeouts.connect_s,
        "read_timeout": timeouts.read_s,
        "retries": {"total_max_attempts": 1},
    }
    made = importlib.import_module("fsspec").filesystem(scheme, config_kwargs=bounds, **_NO_CACHES)
    made.retries = 1  # Weir's are bounded, and know what can't be helped
    return made


def _s3_code(error: BaseException) -> str:
    for one in _chain(error):
        if isinstance(response := getattr(one, "response", None), Mapping):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _google(scheme: str, timeouts: StorageTimeouts) -> Any:
    """The plain client: gcsfs' default one asks Google by gRPC for the kind of bucket before each request."""
    aiohttp, core = importlib.import_module("aiohttp"), importlib.import_module("gcsfs.core")
    bounds = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.read_s)
    made = core.GCSFileSystem(requests_timeout=bounds, **_NO_CACHES)
    # gcsfs tries six times with pauses of up to half a minute, and prints a traceback; no option says otherwise.
    made._request = types.MethodType(core.GCSFileSystem._request.__wrapped__, made)
    return made


#: What gcsfs says was not found, where that is a list of a bucket or a place in it: the bucket itself.
_GOOGLE_BUCKET = re.compile(r"\bb/[^/]+/o(\?name=.*)?\Z")


def _google_code(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return "NoSuchBucket" if _GOOGLE_BUCKET.search(text) else ""
    if isinstance(error, ValueError) and text.startswith("Bad Request"):
        return "400"
    if isinstance(error, OSError) and text.startswith("Forbidden"):
        return "403"
    # An access token that has run out is renewed by the next try.
    return "" if "Invalid Credentials" in text else str(getattr(error, "code", None) or "")


def _azure(scheme: str, timeouts: StorageTimeouts) -> Any:
    adlfs, blobs = importlib.import_module("adlfs"), importlib.import_module("azure.storage.blob.aio")
    try:
        made = adlfs.AzureBlobFileSystem(**_NO_CACHES)
    except ValueError as error:
        raise ValueError(f"{error}: {_AZURE.missing}") from None
    found = made.service_client
    # adlfs hands no timeouts on to lists and deletions, and leaves Azure's own tries as they are.
    made.service_client = blobs.BlobServiceClient(
        found.url,
        credential=found.credential,
        retry_total=0,
        connection_timeout=timeouts.connect_s,
        read_timeout=timeouts.read_s,
    )
    return made


def _azure_code(error: BaseException) -> str:
    for one in _chain(error):
        if (status := getattr(one, "status_code", None)) in (401, 403):
            return str(status)
        if code := getattr(one, "error_code", None) or status:
            return str(getattr(code, "value", code))
        if isinstance(one, FileNotFoundError) and "No such container" in str(one):
            return "ContainerNotFound"
    return ""


_AZURE_CREDENTIALS = (
    "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, "
    "AZURE_STORAGE_SAS_TOKEN or a signed-in identity"
)
_S3 = Provider(
    package="s3fs",
    make=_s3,
    code=_s3_code,
    refused={
        "NoSuchBucket": _NO_BUCKET,
        "InvalidBucketName": "that is no name of a bucket: correct the URL",
        "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
        "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    },
    credentials="AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN",
    not_given=frozenset(
        {
            "NoCredentialsError",
            "PartialCredentialsError",
            "ProfileNotFound",
            "NoRegionError",
            "CredentialRetrievalError",
        }
    ),
    missing="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    upload={"chunksize": PART_BYTES},
)
_GOOGLE = Provider(
    package="gcsfs",
    make=_google,
    code=_google_code,
    refused={
        "NoSuchBucket": _NO_BUCKET,
        "400": "Google refused the request as invalid: is the bucket's name right?",
    },
    credentials="GOOGLE_APPLICATION_CREDENTIALS, or the machine's own service account,",
    not_given=frozenset({"DefaultCredentialsError", "MutualTLSChannelError"}),
    missing="set GOOGLE_APPLICATION_CREDENTIALS",
    upload={"chunksize": PART_BYTES},
)
_AZURE = Provider(
    package="adlfs",
    make=_azure,
    code=_azure_code,
    refused={
        "ContainerNotFound": "there is no such container: make it, or correct the URL",
        "InvalidResourceName": "that is no name of a container: correct the URL",
        "AccountIsDisabled": "the storage account is disabled",
    },
    credentials=_AZURE_CREDENTIALS,
    not_given=frozenset({"CredentialUnavailableError", "ClientAuthenticationError"}),
    missing=f"set {_AZURE_CREDENTIALS}",
)
_PROVIDERS: Mapping[str, Provider] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
}
