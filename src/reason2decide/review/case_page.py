"""The page of a case: what a reviewer sees of it, and what follows from what they press."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from reason2decide.data.records import LabelSet
from reason2decide.model.reasons import Reason
from reason2decide.review import answers
from reason2decide.review.accounts import Session
from reason2decide.review.answers import AnsweredElsewhere, GivenAnswer, Kind
from reason2decide.review.highlights import highlighted
from reason2decide.review.queueing import (
    ADJUDICATED,
    DISPUTED,
    OPEN,
    PASTED,
    UNREADABLE,
    WAITING,
    Claim,
    ModelDecision,
    claim_case,
    drawn,
    prediction_by_id,
    prediction_of,
)
from reason2decide.review.store import Row, Store, StoreUnavailable, now
from reason2decide.review.web import LARGEST_ID, Form, Refusal, Web, id_of

LONGEST_FIELD = 20_000  # ours: characters of a reason or comment


@dataclass(frozen=True)
class Typed:
    """What a reviewer has typed and chosen on the page so far."""

    label: str = ""
    rationale: str = ""
    reason: str = ""
    comment: str = ""


@dataclass(frozen=True)
class OtherReason:
    """A reason for another label, asked for on the page."""

    label: str
    text: str
    supports: bool | None


@dataclass(frozen=True)
class ShownCase:
    """A case as one reviewer may see it now."""

    case: Row
    kind: Kind
    claim: Claim
    prediction: ModelDecision | None
    blind: bool
    first: Row | None
    own: Row | None
    others: list[Row] = field(default_factory=list)

    @property
    def hidden(self) -> bool:
        """Whether the model is hidden until the reviewer has decided."""
        return self.blind and self.first is None and (self.own is None or self.own["action"] == "skip")


class CasePage:
    """Shows cases and keeps answers on them."""

    def __init__(self, store: Store, web: Web, labels: LabelSet, model_hash: str, *, explains: bool) -> None:
        self._store, self._web, self._labels = store, web, labels
        self._model_hash, self._explains = model_hash, explains

    def view(self, session: Session, case_id: int, form: Form | None = None) -> ShownCase:
        """What a reviewer sees of a case; what a form was about stays what it is about.

        Raises:
            Refusal: there is no such case, or enough others have reviewed it.
        """
        reviewer = session.reviewer
        case = self._store.row("SELECT * FROM cases WHERE id = ?", (min(case_id, LARGEST_ID),))
        if case is None:
            raise Refusal("gone", 404)
        standing = answers.of_case(self._store, case_id)
        settling = reviewer.adjudicates and case["state"] in (DISPUTED, ADJUDICATED)
        reviewed = any(own["reviewer"] == reviewer.id and own["kind"] == "review" for own in standing)
        kind: Kind = "adjudication" if settling and not reviewed else "review"
        own = next((a for a in standing if a["reviewer"] == reviewer.id and a["kind"] == kind), None)
        # What somebody sends of a case that others have reviewed meanwhile is kept as one more review.
        if form is None and kind == "review" and own is None and case["state"] not in (OPEN, WAITING):
            raise Refusal("unreadable_case" if case["state"] == UNREADABLE else "not_yours", 409)
        values = (reviewer.id, case_id)
        claim = self._store.row("SELECT * FROM claims WHERE reviewer = ? AND case_id = ?", values)
        opened = (form or {}).get("opened") or now()
        sampled, share = ("disputed", 1.0) if kind == "adjudication" else ("link", 0.0)
        if own is not None:
            sampled, share = own["sampled"], own["share"]
        elif claim is not None:
            sampled, share, opened = claim["sampled"], claim["share"], claim["opened"]
        elif kind == "review":
            self._claim(Claim(case_id, sampled, share, opened), reviewer.id)
        shown = id_of((form or {}).get("prediction", ""))
        if shown is not None:
            prediction = prediction_by_id(self._store, case_id, shown)
        else:
            prediction = prediction_of(self._store, case_id, self._model_hash) or prediction_of(self._store, case_id)
        first = self._store.row("SELECT * FROM first_decisions WHERE reviewer = ? AND case_id = ?", values)
        may_be_blind = kind == "review" and case["source"] != PASTED
        chosen = drawn("blind", case_id, reviewer.id) < self._web.settings.blind_share
        return ShownCase(
            case=case,
            kind=kind,
            claim=Claim(case_id, sampled, share, opened),
            prediction=prediction,
            blind=may_be_blind and (first is not None or chosen),
            first=first,
            own=own,
            others=[a for a in standing if a["kind"] == "review"] if kind == "adjudication" else [],
        )

    def _claim(self, claim: Claim, reviewer: int) -> None:
        """Note that a reviewer has opened a case by its link, and when; a case is shown without, too."""
        with contextlib.suppress(StoreUnavailable), self._store.transaction() as database:
            claim_case(database, claim, reviewer, self._web.settings)

    def show(
        self,
        request: Request,
        session: Session,
        view: ShownCase,
        *,
        form: Form | None = None,
        why: OtherReason | None = None,
        messages: Iterable[str] = (),
        replaces: int | None = None,
        status: int = 200,
    ) -> HTMLResponse:
        """The page; a form's fields are on it as they were typed."""
        said, t = list(messages), self._web.texts(request)
        prediction, own = view.prediction, view.own
        if form is not None:
            typed = Typed(*(form.get(name, "") for name in Typed.__dataclass_fields__))
        elif own is not None:
            typed = Typed(own["label"] or "", own["rationale"], own["reason"], own["comment"])
            said.append(t("already", at=own["at"], label=own["label"] or t(f"action_{own['action']}")))
        else:
            typed = Typed(rationale="" if prediction is None else prediction.rationale or "")
        if replaces is None and own is not None:
            replaces = own["id"]
        hidden_fields = {"key": secrets.token_urlsafe(16), "opened": view.claim.opened}
        if form is not None and form.get("key") and not answers.is_kept(self._store, form["key"]):
            hidden_fields["key"] = form["key"]
        if prediction is not None and not view.hidden:
            hidden_fields["prediction"] = str(prediction.id)
        if replaces is not None:
            hidden_fields["replaces"] = str(replaces)
        shown = None if prediction is None or view.hidden else prediction.rationale
        parts = highlighted(view.case["text"], shown)
        return self._web.page(
            request,
            "case.html",
            session,
            status=status,
            messages=said,
            case=view.case,
            note=parts,
            marked=any(part.mark for part in parts),
            sampled=None if view.hidden else view.claim.sampled,  # why it was taken tells of the model
            prediction=prediction,
            model_hash=self._model_hash,
            hidden=view.hidden,
            adjudicating=view.kind == "adjudication",
            others=view.others,
            first_label=view.first["label"] if view.first else None,
            labels=self._labels.values,
            explains=self._explains,
            hidden_fields=hidden_fields,
            fields=typed,
            why=why,
            last_answer=answers.last_answer(self._store, session.reviewer.id),
            unsaved=form is not None,
        )

    def answered(self, request: Request, session: Session, view: ShownCase, form: Form) -> HTMLResponse | None:
        """Keep what a form says of a case; None once it is kept, else the page again with what is wrong.

        Raises:
            StoreUnavailable: nothing was kept.
        """
        t, action, label = self._web.texts(request), form.get("action", ""), form.get("label", "")
        if action not in ("first", "decide", "defer", "skip"):
            raise Refusal("bad_form", 422)
        longest = max(map(len, form.values()))
        if longest > LONGEST_FIELD:
            message = t("too_long_field", found=longest, most=LONGEST_FIELD)
            return self.show(request, session, view, form=form, messages=[message], status=422)
        if action in ("first", "decide") and label not in self._labels.values:
            return self.show(request, session, view, form=form, messages=[t("choose_label")], status=422)
        if action == "first":
            answers.keep_first(self._store, view.case["id"], session.reviewer.id, label)
            return None
        if view.hidden and action != "skip":
            raise Refusal("bad_form", 422)
        try:
            answers.keep(self._store, self._answer(session, view, form))
        except AnsweredElsewhere as error:
            other = error.answer
            shown = other["label"] or t(f"action_{other['action']}")
            message = t("elsewhere", at=other["at"], label=shown)
            return self.show(request, session, view, form=form, messages=[message], replaces=other["id"], status=409)
        return None

    def _answer(self, session: Session, view: ShownCase, form: Mapping[str, str]) -> GivenAnswer:
        prediction, rationale = view.prediction, form.get("rationale", "").strip()
        label = form["label"] if form["action"] == "decide" else None
        agrees = prediction is not None and label == prediction.label
        actions: dict[str, Any] = {"decide": "accept" if agrees else "override"}
        return GivenAnswer(
            key=form.get("key") or secrets.token_urlsafe(16),
            case_id=view.case["id"],
            reviewer=session.reviewer.id,
            prediction=None if prediction is None or view.hidden else prediction.id,
            kind=view.kind,
            action=actions.get(form["action"], form["action"]),
            label=label,
            rationale=rationale,
            edited=rationale != ((prediction and prediction.rationale) or "").strip(),
            reason=form.get("reason", "").strip(),
            comment=form.get("comment", "").strip(),
            blind=view.blind,
            first_label=view.first["label"] if view.first else None,
            first_at=view.first["at"] if view.first else None,
            sampled=view.claim.sampled,
            share=view.claim.share,
            opened=view.claim.opened,
            replaces=id_of(form.get("replaces", "")),
        )


def why_of(label: str, reason: Reason) -> OtherReason:
    """A model's reason for a label, for the page."""
    return OtherReason(label, reason.text, reason.supports)
