"""A defence around any Flower strategy.

    strategy = SkyMask(FedAvg(...), model=Net, loss=cross_entropy, root_data=root, local=LocalSGD())
    result = strategy.start(grid=grid, initial_arrays=..., num_rounds=50, timeout=120)

Each round the inner strategy says whom to ask; what comes back is sorted out, screened and judged,
and the inner strategy aggregates what is left. The client app does not change.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from skymask.defences import SkyMask as MaskDefence
from skymask.environment import usable_device
from skymask.errors import InputError, require
from skymask.flat import SampleLoss
from skymask.flower.checkpoint import (
    Federation,
    changed,
    remembered,
    remind,
    resumable,
    save_federation,
)
from skymask.flower.inner import aggregated, loss_key, weighted_by
from skymask.flower.judge import Judge, OwnModel, judge, timed
from skymask.flower.layout import Arrays, decode
from skymask.flower.ledger import Ledger
from skymask.flower.patience import Patient
from skymask.flower.policy import Policy, Standing, listed
from skymask.flower.replies import Sent, Verdict, screened, screened_evaluation, sorted_out
from skymask.local_sgd import LocalSGD
from skymask.records import is_kept
from skymask.server import OwnTraining
from skymask.types import Batch, Decision, Defence

_log = logging.getLogger("flwr")


@dataclass
class _Round:
    """What is known of the round that is under way."""

    index: int
    arrays: ArrayRecord
    asked: list[Message]
    excluded: list[int]
    begin: float
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class RobustStrategy(Strategy):
    """Any Flower strategy, with a defence of the catalogue in front of it.

    Args:
        inner: the strategy that asks the nodes and aggregates what is left of their replies.
        defence: a rule, such as `skymask.TrimmedMean()` or `skymask.SkyMask()`.
        model: a module, or a function without arguments that makes one: tells parameters from
            buffers, and is what the server trains. Without it all floating-point arrays count as
            parameters, and only rules that need no root data set can be used.
        loss: `loss(outputs, labels)`, the mean over a batch, as the clients have it.
        root_data: the server's own clean samples, `(inputs, labels)`.
        local: how the server trains on the root data set as a client would: a `LocalSGD`, or a
            function that trains the module it is given on the batch it is given, in place.
        combine: "defence": the inner strategy gets the accepted replies, each with the defence's
            aggregate as its arrays, so that it can only arrive at that; a server optimiser still
            makes its step from it. "inner": it gets the accepted replies as they are.
        policy: when a node is no longer asked, and how it comes back.
        ledger: file that gets one line a round; see `Ledger`. Standings in it are taken over.
        checkpoint: folder that keeps the federation's state after every round; `start` goes on
            from there. Put it where the model may be kept.
        node_deadline: seconds to wait for as many nodes as the inner strategy wants; Flower alone
            waits for ever.
        max_weight_ratio: a reply that states more than this many times the median node's examples
            is malformed.
        weighted_by_key: the metric that states a node's example count (default: the inner
            strategy's own, else "num-examples").
        seed: decides the root model's mini-batches and what the defence draws.
        device: where the server computes (default: a GPU if there is one).

    Raises:
        InputError: for settings that do not fit one another.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        defence: Defence,
        model: nn.Module | Callable[[], nn.Module] | None = None,
        loss: SampleLoss | None = None,
        root_data: Sequence[Tensor] | None = None,
        local: LocalSGD | OwnTraining | None = None,
        combine: Literal["defence", "inner"] = "defence",
        policy: Policy | None = None,
        ledger: str | Path | None = None,
        checkpoint: str | Path | None = None,
        node_deadline: float = 600.0,
        max_weight_ratio: float = 100.0,
        weighted_by_key: str | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        if not isinstance(inner, Strategy):
            raise InputError(
                f"inner is a {type(inner).__name__} but must be a strategy of "
                "flwr.serverapp.strategy, such as FedAvg()"
            )
        given = {"model": model, "loss": loss, "root_data": root_data, "local": local}
        lacking = [name for name, value in given.items() if value is None]
        if lacking and any(given[name] is not None for name in ("loss", "root_data", "local")):
            raise InputError(
                f"{lacking[0]} is missing: the server's own model needs model, loss, root_data "
                "and local, all of them"
            )
        require(combine in ("defence", "inner"), "combine", combine, "'defence' or 'inner'")
        require(node_deadline > 0, "node_deadline", node_deadline, "a positive number of seconds")
        require(max_weight_ratio >= 1, "max_weight_ratio", max_weight_ratio, "at least 1")
        self.inner = inner
        self.defence = defence
        self.policy = policy or Policy()
        self.combine = combine
        self.node_deadline = node_deadline
        self.max_weight_ratio = max_weight_ratio
        self.weighted_by_key = weighted_by_key or weighted_by(inner)
        self.seed = seed
        self.device = usable_device(device)
        self.standings: dict[int, Standing] = {}
        """What the server holds against each node, by node id."""
        self._model = model
        self._own: OwnModel | None = None
        if loss is not None and root_data is not None and local is not None:
            root = Batch(*(part.to(self.device) for part in root_data))
            self._own = OwnModel(loss, root, local)
        self._ledger = None if ledger is None else Ledger(Path(ledger))
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._memory: Any = None
        self._rounds = 0  # of `start`; without it there is nothing to spread close-ups over
        self._judge: Judge | None = None
        self._round: _Round | None = None
        self._evaluating: list[Message] = []
        self._known: dict[int, dict[str, str]] = {}
        self._inner_start = remembered(inner)[0]
        self._last_warnings: list[str] = []

    @property
    def excluded(self) -> set[int]:
        """Ids of the nodes that are not asked at present."""
        return {node for node, standing in self.standings.items() if standing.excluded}

    @property
    def strikes(self) -> dict[int, int]:
        """Strikes of each node that has any."""
        return {node: s.strikes for node, s in self.standings.items() if s.strikes}

    def pardon(self, *nodes: int | str) -> None:
        """Forget the strikes of these nodes (ids, or names seen in this run)."""
        for node in list(self.standings):
            if listed(nodes, node, self._known.get(node, {}).get("name")):
                self.standings[node] = Standing()

    def summary(self) -> None:
        """Log the settings, and the inner strategy's after them."""
        _log.info("\t├──> Defence: %s", self.defence)
        _log.info("\t├──> %s", self.policy)
        _log.info("\t├──> Inner strategy: %s", type(self.inner).__name__)
        self.inner.summary()

    # Training

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's requests, but for those to excluded nodes."""
        if self._judge is None:
            self._judge = self._ready(arrays)
        begin = time.monotonic()
        patient = self._patient(grid)
        messages = list(self.inner.configure_train(server_round, arrays, config, patient))
        self._meet(grid)
        asked = self._not_excluded(messages)
        self._round = _Round(server_round, arrays, asked, sorted(self.excluded), begin)
        self._round.seconds["configure"] = time.monotonic() - begin
        if messages and not asked:
            self._warn("every node that the inner strategy chose is excluded; nothing is trained")
        return asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen and judge the replies; the inner strategy aggregates the accepted ones.

        Returns (None, metrics) where nothing is left to aggregate: the global model stays.
        """
        now = self._round
        if now is None or self._judge is None:
            raise InputError("aggregate_train was called before configure_train")
        now.seconds["clients"] = time.monotonic() - now.begin - now.seconds["configure"]
        came, verdicts = sorted_out(now.asked, replies)
        globals_ = {key: decode(key, array) for key, array in now.arrays.items()}
        with timed(now.seconds, "screening"):
            usable, malformed = screened(
                came,
                self._judge.layout,
                globals_,
                self.weighted_by_key,
                self.max_weight_ratio,
                loss_key(self.inner),
            )
        verdicts |= malformed
        decision = None
        if usable:
            judged = self._judge(now.index - 1, globals_, usable, self._memory, now.seconds)
            decision, self._memory = judged.decision, judged.memory
            for warning in judged.warnings:
                self._warn(warning)
        accepted = self._accepted(usable, decision, verdicts)
        arrays, metrics = self._aggregate(now, globals_, accepted, decision, whole=not malformed)
        metrics = self._close(now, verdicts, metrics)
        if self._ledger and decision and self._rounds and is_kept(now.index - 1, self._rounds):
            self._ledger.append_closeup(now.index, [sent.node for sent in usable], decision)
        return arrays, metrics

    def _accepted(
        self, usable: list[Sent], decision: Decision | None, verdicts: dict[int, Verdict]
    ) -> list[Sent]:
        """The replies that the inner strategy is to have; adds their verdicts, and the others'."""
        if decision is None:
            why = "too few usable replies in this round for the defence to judge them"
            verdicts |= {sent.node: Verdict("unjudged", why) for sent in usable}
            return []
        scores = [None] * len(usable) if decision.scores is None else decision.scores.tolist()
        reasons = decision.reasons or (None,) * len(usable)
        kept = []
        for sent, ok, score, reason in zip(
            usable, decision.accepted.tolist(), scores, reasons, strict=True
        ):
            name = self._known.get(sent.node, {}).get("name")
            if not ok and self.policy.allows(sent.node, name):
                ok, reason = True, f"on the allow-list, else: {reason}"
            kind: Literal["accepted", "rejected"] = "accepted" if ok else "rejected"
            verdicts[sent.node] = Verdict(kind, reason, score)
            if ok or self.policy.observe:
                kept.append(sent)
        return kept

    def _aggregate(
        self,
        now: _Round,
        globals_: Arrays,
        accepted: list[Sent],
        decision: Decision | None,
        whole: bool,
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's aggregate of the accepted replies, if it has a usable one.

        `whole`: nothing was left out by the screening.
        """
        assert self._judge is not None
        if not accepted or decision is None:
            return None, None
        if self.combine == "defence" and not self.policy.observe:
            self._judge.hand_on(globals_, decision, accepted)
        messages = [sent.message for sent in accepted]
        whole = whole and len(accepted) == len(now.asked)
        with timed(now.seconds, "inner"):
            arrays, metrics, problem = aggregated(
                self.inner, now.index, messages, self._judge.layout, whole
            )
        if problem is not None:
            self._warn(problem)
        return arrays, metrics

    def _close(
        self, now: _Round, verdicts: dict[int, Verdict], metrics: MetricRecord | None
    ) -> MetricRecord:
        """Draw the consequences of a round: standings, ledger, metrics."""
        verdicts |= {node: Verdict("excluded") for node in now.excluded}
        for node, standing in self.standings.items():
            if standing.excluded:
                self.standings[node] = self.policy.rested(standing)
        # Where everybody is rejected it is the model or the server that went wrong, not they.
        nobody = all(verdict.kind != "accepted" for verdict in verdicts.values())
        for node, verdict in verdicts.items():
            if verdict.kind != "excluded" and not (nobody and verdict.kind == "rejected"):
                before = self.standings.get(node, Standing())
                self.standings[node] = self.policy.after(before, verdict.kind)
        now.seconds["round"] = time.monotonic() - now.begin
        if self._ledger is not None:
            nodes = {node: self._entry(node, verdicts[node]) for node in sorted(verdicts)}
            self._ledger.append_round(now.index, now.seconds, nodes, now.warnings)
        self._last_warnings = now.warnings
        out = MetricRecord() if metrics is None else metrics
        kinds = [verdict.kind for verdict in verdicts.values()]
        for kind in ("accepted", "rejected", "malformed", "excluded"):
            out[f"skymask-{kind}"] = kinds.count(kind)
        out["skymask-failed"] = kinds.count("error") + kinds.count("silent")
        out["skymask-seconds"] = sum(
            now.seconds.get(name, 0.0) for name in ("screening", "root", "defence")
        )
        self._tell(verdicts)
        return out

    def _entry(self, node: int, verdict: Verdict) -> dict[str, Any]:
        standing = self.standings.get(node, Standing())
        entry = {"verdict": verdict.kind, "reason": verdict.reason, "score": verdict.score}
        return entry | asdict(standing) | self._known.get(node, {})

    def _tell(self, verdicts: Mapping[int, Verdict]) -> None:
        kinds = [verdict.kind for verdict in verdicts.values()]
        _log.info("skymask: %s of %s replies accepted", kinds.count("accepted"), len(kinds))
        for node, verdict in sorted(verdicts.items()):
            if verdict.kind not in ("accepted", "excluded"):
                name = self._known.get(node, {}).get("name")
                who = f"{node} ({name})" if name else str(node)
                _log.info("\t> node %s %s: %s", who, verdict.kind, verdict.reason)

    # Evaluation

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's requests, but for those to excluded nodes."""
        patient = self._patient(grid)
        messages = list(self.inner.configure_evaluate(server_round, arrays, config, patient))
        self._evaluating = self._not_excluded(messages)
        return self._evaluating

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The inner strategy's aggregate of the replies that can be used.

        A node may lie about its own evaluation, and nothing here can tell: trust `evaluate_fn`.
        """
        came, verdicts = sorted_out(self._evaluating, replies)
        usable, malformed = screened_evaluation(came, self.weighted_by_key, self.max_weight_ratio)
        verdicts |= malformed
        if verdicts and self._ledger is not None:
            told = {str(node): asdict(verdict) for node, verdict in sorted(verdicts.items())}
            self._ledger.append({"round": server_round, "evaluation": told})
        if not usable:
            return None
        try:
            return self.inner.aggregate_evaluate(server_round, usable)
        except Exception as error:
            if not verdicts:
                raise
            _log.warning("skymask: evaluation replies could not be aggregated: %s", error)
            return None

    # The run

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation, as `Strategy.start` does, from the last checkpoint if there is one.

        With `timeout` a node that has not answered by then is silent in that round; choose it
        shorter than a round may take at most, because a killed node answers nothing.

        Raises:
            TooFewNodes: if for `node_deadline` there are fewer nodes than the inner strategy wants.
            InputError: if the arrays do not fit the model, or the checkpoint is another model's.
        """
        require(num_rounds >= 1, "num_rounds", num_rounds, "at least 1")
        self.summary()
        self._rounds = num_rounds
        self._judge = self._ready(initial_arrays)
        state = self._resumed(initial_arrays)
        arrays, result = state.arrays, state.result
        if state.rounds:
            _log.info("skymask: going on after round %s of %s", state.rounds, num_rounds)
        else:
            if evaluate_fn and (metrics := evaluate_fn(0, arrays)) is not None:
                result.evaluate_metrics_serverapp[0] = metrics
            self._keep(0, arrays, result)
        train, evaluate = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        for index in range(state.rounds + 1, num_rounds + 1):
            _log.info("[ROUND %s/%s]", index, num_rounds)
            asked = self.configure_train(index, arrays, train, grid)
            replies = grid.send_and_receive(asked, timeout=timeout) if asked else []
            trained, metrics = self.aggregate_train(index, replies)
            if trained is not None:
                arrays = trained
            if metrics is not None:
                result.train_metrics_clientapp[index] = metrics
            asked = self.configure_evaluate(index, arrays, evaluate, grid)
            replies = grid.send_and_receive(asked, timeout=timeout) if asked else []
            metrics = self.aggregate_evaluate(index, replies)
            if metrics is not None:
                result.evaluate_metrics_clientapp[index] = metrics
            if evaluate_fn and (metrics := evaluate_fn(index, arrays)) is not None:
                result.evaluate_metrics_serverapp[index] = metrics
                if self._ledger is not None:
                    self._ledger.append_evaluation(index, metrics)
                _log.info("skymask: evaluation by the server: %s", dict(metrics))
            result.arrays = arrays
            self._keep(index, arrays, result)
        return result

    def _ready(self, arrays: ArrayRecord) -> Judge:
        return judge(self.defence, arrays, self._model, self._own, self.seed, self.device)

    def _resumed(self, initial_arrays: ArrayRecord) -> Federation:
        """Where to begin: the checkpoint, or the start with the standings of the ledger."""
        state = None
        if self._checkpoint is not None:
            state = resumable(self._checkpoint, self._about, initial_arrays, self.device)
        if state is not None:
            remind(self.inner, state.inner)
            self.standings, self._memory = dict(state.standings), state.memory
        elif self._ledger is not None:
            self.standings = self._ledger.standings()
        if self._ledger is not None:
            settings = {
                **self._about,
                "settings": repr(self.defence),
                "combine": self.combine,
                "policy": asdict(self.policy),
                "seed": self.seed,
            }
            self._ledger.start(settings, None if state is None else state.rounds)
        self.pardon(*self.policy.pardon)
        if state is not None:
            return state
        result = Result(initial_arrays)
        return Federation(0, initial_arrays, None, {}, {}, result, self._about)

    def _keep(self, index: int, arrays: ArrayRecord, result: Result) -> None:
        if self._checkpoint is None:
            return
        now, strange = remembered(self.inner)
        if index == 1 and strange:
            _log.warning(
                "skymask: the checkpoint cannot keep %s of %s; after a restart they start anew",
                ", ".join(strange),
                type(self.inner).__name__,
            )
        inner = changed(self._inner_start, now)
        state = Federation(index, arrays, self._memory, self.standings, inner, result, self._about)
        save_federation(self._checkpoint, state)

    # Small parts

    @property
    def _about(self) -> dict[str, str]:
        """What a checkpoint must have been made with."""
        return {"inner": type(self.inner).__name__, "defence": type(self.defence).__name__}

    def _patient(self, grid: Grid) -> Grid:
        return cast(Grid, Patient(grid, self.node_deadline, type(self.inner).__name__))

    def _not_excluded(self, messages: Sequence[Message]) -> list[Message]:
        """The messages to send.

        Flower samples among all connected nodes, and an excluded one is left out only here: hiding
        it from the sampling could make Flower wait for ever for another node.
        """
        out = self.excluded
        return [message for message in messages if message.metadata.dst_node_id not in out]

    def _meet(self, grid: Grid) -> None:
        """Note the names and keys of the nodes, and pardon those to be pardoned by name."""
        for info in grid.get_nodes():
            if info.node_id in self._known:
                continue
            about = {"name": info.name} if info.name else {}
            if info.public_key:
                about["key"] = f"sha256:{sha256(info.public_key).hexdigest()}"
            self._known[info.node_id] = about
            if info.name and info.name in self.policy.pardon and info.node_id in self.standings:
                self.standings[info.node_id] = Standing()

    def _warn(self, text: str) -> None:
        if self._round is not None:
            self._round.warnings.append(text)
        if text.split(";")[0] not in {old.split(";")[0] for old in self._last_warnings}:
            _log.warning("skymask: %s", text)


class SkyMask(RobustStrategy):
    """SkyMask in front of any Flower strategy: it throws out, the inner strategy aggregates.

    The arguments are those of `RobustStrategy`; `model`, `loss`, `root_data` and `local` must be
    given, and `defence` may be another `skymask.SkyMask(...)`, or `SkyMask.paper()`.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        model: nn.Module | Callable[[], nn.Module],
        loss: SampleLoss,
        root_data: Sequence[Tensor],
        local: LocalSGD | OwnTraining,
        defence: Defence | None = None,
        combine: Literal["defence", "inner"] = "inner",
        **settings: Any,
    ) -> None:
        super().__init__(
            inner,
            defence=defence or MaskDefence(),
            model=model,
            loss=loss,
            root_data=root_data,
            local=local,
            combine=combine,
            **settings,
        )
