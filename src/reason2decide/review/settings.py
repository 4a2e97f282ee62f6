"""Every setting of the review pages, each default with its source."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reason2decide.errors import ConfigError

# Why a case is taken next. "random" is what an unbiased estimate is made of, see `queueing.py`.
ORDERS = ("uncertain", "unsupported", "urgent", "newest", "random")
SHARES = "uncertain=0.4,unsupported=0.2,urgent=0.1,newest=0,random=0.3"  # ours
LANGUAGES = ("en", "fr")
PREFIX = "/review"


@dataclass(frozen=True)
class ReviewSettings:
    """Where answers are kept, which cases are reviewed in which order, and who may review.

    Raises:
        ConfigError: a number is out of range, shares do not sum to one, or a header or address is not one.
    """

    review: Path | None = field(
        default=None,
        metadata={
            "help": "SQLite file of reviewers, cases and answers; opens the review pages at /review.",
            "metavar": "FILE",
        },
    )
    queue: Path | None = field(
        default=None, metadata={"help": "File of cases to review, as `r2d predict` reads them.", "metavar": "FILE"}
    )
    reviews_per_case: int = field(default=1, metadata={"help": "Number of independent reviews of a case.", "min": 1})
    blind_share: float = field(  # ours: blind review takes a reviewer longer
        default=0.0,
        metadata={"help": "Share of cases decided by the reviewer before the model is shown.", "min": 0, "max": 1},
    )
    queue_shares: str = field(default=SHARES, metadata={"help": "Share of cases taken for each reason; they sum to 1."})
    session_minutes: int = field(  # OWASP, session management: 15 to 30 minutes for low-risk applications
        default=30, metadata={"help": "Minutes without a request after which a reviewer signs in again.", "min": 1}
    )
    reviewer_header: str | None = field(
        default=None,
        metadata={"help": "Header in which a trusted proxy names the reviewer; replaces passwords.", "metavar": "NAME"},
    )
    trusted_proxy: tuple[str, ...] = field(
        default=("127.0.0.1", "::1"),
        metadata={
            "help": "Address or network from which that header is believed; may be repeated.",
            "metavar": "ADDRESS",
        },
    )

    sign_ins_a_minute: int = 10  # ours: attempts for one name
    failures_a_minute: int = 100  # ours: from one address, which may be that of a whole hospital
    requests_a_minute: int = 240  # ours: of one reviewer
    claim_minutes: int = 30  # ours: how long a case waits for the reviewer who opened it

    def __post_init__(self) -> None:
        if self.reviews_per_case < 1 or self.session_minutes < 1:
            raise ConfigError("reviews_per_case and session_minutes must be at least 1")
        if not 0 <= self.blind_share <= 1:
            raise ConfigError(f"blind_share is {self.blind_share}; expected a share from 0 to 1")
        _ = self.shares
        if self.queue is not None and self.review is None:
            raise ConfigError("--queue needs --review FILE, where the cases and their answers are kept")
        if self.reviewer_header is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", self.reviewer_header):
            raise ConfigError(f"{self.reviewer_header!r} is not the name of a header, as in X-Remote-User")
        for address in self.trusted_proxy:
            try:
                ipaddress.ip_network(address)
            except ValueError as error:
                raise ConfigError(f"trusted_proxy: {address!r} is not an IP address or network: {error}") from None

    def trusts(self, host: str) -> bool:
        """Whether a caller's address is that of a trusted proxy.

        >>> ReviewSettings(trusted_proxy=("10.0.0.0/8",)).trusts("::ffff:10.1.2.3")
        True
        """
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        seen = {address, getattr(address, "ipv4_mapped", None) or address}
        return any(own in ipaddress.ip_network(network) for network in self.trusted_proxy for own in seen)

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of cases taken for each reason of `ORDERS`.

        >>> ReviewSettings(queue_shares="random=1").shares["random"]
        1.0
        """
        found = dict.fromkeys(ORDERS, 0.0)
        for part in self.queue_shares.split(","):
            name, _, value = (own.strip() for own in part.partition("="))
            if name not in found:
                raise ConfigError(f"queue_shares: {name!r} is no reason to take a case; there are {', '.join(ORDERS)}")
            try:
                found[name] = float(value)
            except ValueError:
                raise ConfigError(f"queue_shares: {value!r} is not a number, in {part.strip()!r}") from None
        if min(found.values()) < 0 or abs(sum(found.values()) - 1) > 1e-6:
            raise ConfigError(f"queue_shares: {self.queue_shares!r} are not shares that sum to 1")
        return found
