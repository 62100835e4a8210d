"""The planted defects: each rule broken in one place, each fsync taken away. Called by ``mutants``, which plants them one at a time.

``old`` must occur exactly once in ``file``, so that a change of the code cannot let a defect slip away unnoticed. What is not listed: R6, which
is not implemented (no snapshots of the source: docs/decisions/0022-no-snapshots-of-the-source.md); lines that only another defect could reach (the lease beside the sequence number,
forgetting an interrupted update of a table whose granules are all unconfirmed still; distrust after a diverged history, which ``_leads_to`` decides
too); syncs whose loss costs sending again and no promise (the digest table's name, a spool file's header); passthrough commands, which the model has none of; syncs of what an operator's command makes and can make again (exports, installers, backups).
"""

# ruff: noqa: E501  the planted lines are as long as the code that they replace
from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mutant:
    rule: str
    what: str
    file: str
    old: str
    new: str
    under: str = ""
    """Theme, and tracker after a space."""
    more: tuple[tuple[str, str, str], ...] = ()
    """(file, old, new): the same rule's second line of defence, where each of two lines keeps it without the other."""

    test: str = ""
    """The unit test that catches it instead, if it takes more than chance brings together in some hundreds of seeds: pytest's name of it."""

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.file, self.old, self.new), *self.more)


_SESSION: Final = "mobility_agent/protection/disk_session.py"
_LEDGER: Final = "mobility_agent/core/epoch_ledger.py"
_OPENING: Final = "mobility_agent/protection/ledger_opening.py"
_RECEIPTS: Final = "mobility_agent/protection/receipt_intake.py"
_JOURNAL: Final = "mobility_agent/protection/epoch_journal.py"
_TABLE: Final = "mobility_agent/shipping/digest_table.py"
_READER: Final = "mobility_agent/shipping/epoch_reader.py"
_HALVES: Final = "mobility_agent/change_tracker/ebpf/halves.py"
_TRACKER: Final = "mobility_agent/change_tracker/ebpf/tracker.py"
_COORDINATOR: Final = "mobility_agent/protection/point_coordinator.py"
_CUTOVER: Final = "mobility_agent/protection/cutover.py"
_DURABLE: Final = "replication/durable_file.py"
_LOG: Final = "process_server/spool/log.py"
_RECOVERY: Final = "process_server/spool/recovery.py"
_FILES: Final = "process_server/spool/files.py"
_BATCHES: Final = "process_server/intake/batch_intake.py"
_MANIFESTS: Final = "process_server/intake/manifest_intake.py"
_CHAIN: Final = "process_server/core/epoch_chain.py"
_PUT: Final = "process_server/uploader/conditional_put.py"
_REPLICA: Final = "azure_sink/replica_writer/replica_blob.py"
_FOLLOWER: Final = "azure_sink/replica_writer/disk_follower.py"
_APPLICATION: Final = "azure_sink/replica_writer/epoch_application.py"
_GAP: Final = "azure_sink/replica_writer/manifest_gap.py"
_BOOK: Final = "azure_sink/replica_writer/generation_book.py"
_CLEANING: Final = "azure_sink/replica_writer/store_cleaning.py"
_RECEIPT_BLOB: Final = "azure_sink/replica_writer/receipt_blob.py"
_ARENAS: Final = "azure_sink/blob_store/arenas.py"
_CATALOG: Final = "azure_sink/blob_store/schema.py"
_POINTS: Final = "azure_sink/core/recovery_points.py"
_MANIFEST: Final = "replication/epoch_manifest.py"
_STANDSTILL: Final = "mobility_agent/block_device/standstill.py"
_KERNEL: Final = "tests/simulation/source_disk.py"

_AGENTS: Final = "tests/unit/mobility_agent/protection"
_TRACKERS: Final = "tests/unit/mobility_agent/change_tracker/test_ebpf_tracker.py"
_TABLES: Final = "tests/unit/mobility_agent/shipping/test_digest_table.py"
_SPOOLS: Final = "tests/unit/process_server/spool"
_COURIER: Final = "tests/unit/process_server/uploader/test_manifest_courier.py"
_WRITERS: Final = "tests/unit/azure_sink/replica_writer"
_HOSTILE_STORE: Final = f"{_WRITERS}/test_hostile_store.py::test_bad_epoch_is_refused_and_stated"
_OMITTED: Final = f"{_WRITERS}/test_hostile_store.py::test_an_omitted_manifest_is_told_while_a_later_one_is_there"
_CLAIMS: Final = "tests/unit/mobility_agent/block_device/test_claimed_files.py"
_INTAKE: Final = "tests/unit/process_server/intake/test_intake.py"
_SYNCS_FAIL: Final = "tests/fault/test_blob_store_when_syncs_fail.py"
_COMMITTERS: Final = "tests/unit/azure_sink/blob_store/test_committer.py"

MUTANTS: Final = (
    # ---- R1: digests
    Mutant("R1", "skip what another unconfirmed epoch carries", _READER,
           "is_sent[index] = first + index in self._not_to_skip", "is_sent[index] = False"),
    Mutant("R1", "an epoch whose digests are lost keeps its old ones", _RECEIPTS,
           "self._table.forget(epoch.number, epoch.granules)",
           "self._table.forget(epoch.number, type(epoch.granules).of(()))", under="agent scan"),
    Mutant("R1", "a new generation trusts what was unconfirmed", _OPENING,
           "table.begin_generation(generation, _granules_of(old))",
           "table.begin_generation(generation, ())", under="history"),
    Mutant("R1", "what a table ahead of the ledger knows is kept", _OPENING,
           "elif interrupted is not None or table.exact_epoch > ledger.applied_epoch:", "elif interrupted is not None:",
           test=f"{_AGENTS}/test_ledger_opening.py::test_what_a_table_ahead_of_the_ledger_knows_of_later_epochs_is_forgotten"),
    Mutant("R1", "an update of the table is not announced", _TABLE,
           '''            raise IntegrityError("cannot record digests outside of the disk", disk=self._disk, epoch=epoch)
        self._begin(epoch)''',
           '''            raise IntegrityError("cannot record digests outside of the disk", disk=self._disk, epoch=epoch)'''),
    Mutant("R1", "digests of another attempt are taken", _JOURNAL,
           " or not body.startswith(fixed.hash)", "",
           test=f"{_AGENTS}/test_epoch_journal.py::test_digests_are_given_only_for_the_manifest_that_they_were_saved_for"),
    Mutant("R1", "a scan compares while epochs are on their way", _SESSION,
           "(ledger.pending_granules or ledger.epochs))", "ledger.pending_granules)",
           test=f"{_AGENTS}/test_disk_session.py::test_a_scan_is_put_off_if_an_epoch_was_cut_while_it_waited_for_the_gap"),
    Mutant("R1", "digests count before the receipt", _SESSION,
           "self.parts.journal.save_digests(key.epoch, sealed.sealed, shipped.indices, shipped.digests)",
           "self.parts.table.apply(EpochId(key.epoch - 1), shipped.indices, shipped.digests)"),
    # ---- R2: harvest
    Mutant("R2", "a harvest is forgotten before it is durable", _SESSION,
           '''        if epoch is not None:
            self._kept.save()
        if is_harvested:
            self._commit()''',
           '''        if is_harvested:
            self._commit()
        if epoch is not None:
            self._kept.save()'''),
    Mutant("R2", "a frozen harvest is forgotten before it is durable", _SESSION,
           '''            self._kept.save()
            self._commit()
            return epoch''',
           '''            self._commit()
            self._kept.save()
            return epoch''',
           test="tests/unit/mobility_agent/protection/test_disk_session.py"
           "::test_what_was_harvested_while_frozen_is_durable_before_the_tracker_forgets_it"),
    Mutant("R2", "the flipped half is not taken over at the attach", _HALVES,
           '''        """At attach: nobody knows whether the flipped half was persisted, so it goes forward."""
        self.fold()''',
           '''        """At attach: nobody knows whether the flipped half was persisted, so it goes forward."""'''),
    Mutant("R2", "what is carried is not harvested", _HALVES,
           "            _or_slice(into.words, self._carried.words, at)", "            pass"),
    Mutant("R2", "a flip does not wait for running programs", _HALVES,
           '''        self._control.active_word = 0 if int(self._control.active_word) else self._layout.half_words
        self._wait_for_programs()''',
           '''        self._control.active_word = 0 if int(self._control.active_word) else self._layout.half_words''',
           test="tests/unit/mobility_agent/change_tracker/test_ebpf_halves.py"
           "::test_a_program_that_ran_when_a_half_was_flipped_is_waited_for"),
    Mutant("R2", "what a flip that was cut off left is folded while programs still mark it", _HALVES,
           """        self._wait_for_programs()
        fine, coarse""", "        fine, coarse",
           test="tests/unit/mobility_agent/change_tracker/test_ebpf_halves.py"
           "::test_a_program_that_outlives_a_flip_cut_off_before_it_had_waited_loses_no_mark"),
    Mutant("R2", "a restart forgets what was pending", "mobility_agent/protection/journal_codec.py",
           "    ledger.restore_pending(_decode_pending(pending, head[\"pending_form\"], geometry))\n", ""),
    Mutant("R2", "tracking that was interrupted is gone on with", _OPENING,
           "elif not nothing_read and not tracker.continued:", "elif False:",
           more=((_TRACKER, "        control.resync_cause = cause\n", ""),)),
    Mutant("R2", "an older journal is not noticed", _OPENING,
           "elif tracker.journal_serial > ledger.serial:", "elif False:", under="history ebpf"),
    Mutant("R2", "a doubt is forgotten under the old serial", _SESSION,
           '''            self._kept.save()
            self.parts.tracker.commit_harvest(self.ledger.serial)''',
           '''            self.parts.tracker.commit_harvest(self.ledger.serial)''', under="history ebpf"),
    Mutant("R2", "the duty to resynchronize is not persisted", _SESSION,
           "            self.parts.note_doubt(harvest.doubt.reason)\n", ""),
    Mutant("R2", "the flipped half is cleared before it is carried", _HALVES,
           """        self._carried.include(fine, filled)
        self._carried.fill(_fine_words_of(coarse))
        self._clear_flipped(filled)""",
           """        fine, whole = fine.copy(), _fine_words_of(coarse)
        self._clear_flipped(filled)
        self._carried.include(fine, filled)
        self._carried.fill(whole)""",
           test="tests/unit/mobility_agent/change_tracker/test_ebpf_halves.py"
           "::test_an_agent_killed_while_it_folds_has_each_mark_in_the_old_place_or_the_new"),
    Mutant("R2", "a harvest is forgotten before its serial is noted", _TRACKER,
           """        if journal_serial:
            self._control.journal_serial = journal_serial  # before anything is forgotten
        reached("agent.harvest.serial-noted")
        self._halves.commit()""",
           """        self._halves.commit()
        if journal_serial:
            self._control.journal_serial = journal_serial
        reached("agent.harvest.serial-noted")""",
           test=f"{_TRACKERS}::test_a_harvest_is_forgotten_only_under_a_serial_that_is_noted"),
    # ---- R3: in flight
    Mutant("R3", "a doubt is forgiven before it is recorded", _TRACKER,
           "        if verdict.resync is not Cause.NONE:\n",
           "        self._accounts.store(verdict.ledger)\n        if verdict.resync is not Cause.NONE:\n",
           test=f"{_TRACKERS}::test_an_agent_killed_while_it_settles_a_doubt_finds_the_doubt_or_what_it_demands"),
    Mutant("R3", "suspicion ends while writes are in flight", _TRACKER,
           "            if not in_flight and is_exact(ledger, readings) and", "            if is_exact(ledger, readings) and",
           test=f"{_TRACKERS}::test_an_account_that_is_exact_by_chance_while_a_write_is_in_flight_ends_no_suspicion"),
    Mutant("R3", "suspicion ends at a single reading", _TRACKER,
           " and is_exact(ledger, readings) and self._accounts.readings() == readings:", " and is_exact(ledger, readings):",
           test=f"{_TRACKERS}::test_an_account_that_moves_while_it_is_read_ends_no_suspicion"),
    Mutant("R3", "the programs mark at issue only", _KERNEL, "marks_completion: bool = True", "marks_completion: bool = False", under="agent ebpf"),
    Mutant("R3", "the programs mark at completion only", _KERNEL, "marks_issue: bool = True", "marks_issue: bool = False", under="agent ebpf"),
    Mutant("R3", "what is in doubt is not re-dirtied", _TRACKER, "            self._halves.carry_suspects()", "            pass", under="sink ebpf"),
    Mutant("R3", "what is harvested in flight is not suspected", _TRACKER, "            self._halves.suspect_flipped()", "            pass", under="sink ebpf"),
    Mutant("R3", "an overflow demands no resync", _TRACKER,
           "            self._control.resync_cause = verdict.resync", "            pass"),
    # ---- R4: attempts
    Mutant("R4", "an interrupted attempt is gone on with", _SESSION,
           "            if interrupted is not None:", "            if False:"),
    Mutant("R4", "an attempt is begun before it is durable", _SESSION,
           '''        epoch = self.ledger.begin_attempt(number)
        self._kept.save()''',
           '''        epoch = self.ledger.begin_attempt(number)'''),
    Mutant("R4", "a point that was read again stays a point", _LEDGER,
           '''                    flags=epoch.flags & ~_POINT_FLAGS,
                    cut=None,''',
           '''                    flags=epoch.flags,
                    cut=epoch.cut,''', under="spools"),
    Mutant("R4", "a point whose image is gone is read again as one, if no attempt of it was begun", _SESSION,
           "(epoch.cut is not None or (epoch.number, epoch.attempt) == self._begun)", "((epoch.number, epoch.attempt) == self._begun)",
           test=f"{_AGENTS}/test_disk_session.py::test_a_point_whose_cut_was_cancelled_before_anything_of_it_was_read_is_never_shipped_as_one"),
    Mutant("R4", "another digest's segment is taken for stored", "process_server/uploader/segment_uploader.py",
           "if (stored.digest, stored.tag) == (job.entry.digest, job.entry.tag):", "if stored:",
           test="tests/unit/process_server/uploader/test_segment_uploader.py"
           "::test_what_another_has_stored_is_a_success_only_with_the_same_digest_and_tag"),
    Mutant("R4", "a batch under the key of another one is a success", _BATCHES, "        if digest != known.digest:", "        if False:",
           test=f"{_INTAKE}::test_other_content_under_the_same_key_is_never_taken"),
    Mutant("R4", "an agent that is behind the sink does not notice", _RECEIPTS,
           "        confirmed = ledger.confirmable(number, applied_hash)\n",
           "        confirmed = ledger.confirmable(number, applied_hash) if number < ledger.next_epoch else []\n", under="history scan"),
    Mutant("R4", "the duty to begin a generation is asked for before it is durable", "mobility_agent/protection/protection_record.py",
           '''        self._file.replace(state.encode())
        self.state = state''',
           '''        self.state = state'''),
    # ---- R5: manifests
    Mutant("R5", "a later manifest replaces the first", _PUT,
           '''    try:
        await client.put_blob(REPLICATION_CONTAINER, name, body, metadata=metadata, if_none_match_any=True)''',
           '''    try:
        await client.put_blob(REPLICATION_CONTAINER, name, body, metadata=metadata)'''),
    Mutant("R5", "a manifest is put before its segments", _CHAIN, "    if manifest.missing:", "    if False:"),
    Mutant("R5", "a segment that a full store has refused counts as stored", "process_server/uploader/segment_uploader.py",
           "        except Conflict as conflict:\n            return await self._compare(job, content, conflict)\n        reached(",
           """        except Conflict as conflict:
            return await self._compare(job, content, conflict)
        except BlockferryError as error:
            if error.code != "overloaded":
                raise
        reached(""", under="troubled"),
    Mutant("R5", "a manifest is put before its predecessor", _CHAIN,
           "    if chain.hash_of(EpochId(epoch - 1)) is None:", "    if False:"),
    Mutant("R5", "a manifest that names what nobody has is accepted", _MANIFESTS,
           "        if missing:\n            raise", "        if False:\n            raise"),
    Mutant("R5", "a manifest's segments that are known to the store only are not verified", _CHAIN,
           "    if manifest.unverified:", "    if False:",
           test=f"{_COURIER}::test_segments_that_only_the_store_may_have_are_asked_for_before_the_manifest_goes"),
    Mutant("R5", "segments that were lost are overlooked", _CHAIN, "    if manifest.lost:", "    if False:",
           test=f"{_COURIER}::test_segments_that_only_the_store_may_have_are_asked_for_before_the_manifest_goes"),
    Mutant("R5", "a manifest that does not chain waits for ever", _CHAIN,
           "    if previous is not None and previous != previous_hash:", "    if False:"),
    # The model has no forgers, and agents there neither abandon epochs nor overlap their batches.
    Mutant("R5", "a manifest of whatever key is believed", _MANIFEST,
           "    if not hmac.compare_digest(hmac.digest(key, encoded[:-_MAC_BYTES], \"sha256\"), encoded[-_MAC_BYTES:]):", "    if False:",
           test=f"{_HOSTILE_STORE}[3-forge_manifest_with_another_key]"),
    Mutant("R5", "a manifest of another history is applied", _FOLLOWER,
           "        if manifest.previous_hash.hex() != replica.state.manifest_hash:", "        if False:",
           test=f"{_HOSTILE_STORE}[3-break_the_chain]"),
    Mutant("R5", "an omitted manifest is waited for in silence", _FOLLOWER, "            if missing is None:", "            if True:", test=_OMITTED),
    Mutant("R5", "only a manifest omitted just before the next one is missed", _GAP, "each.epoch > key.epoch)", "each.epoch == key.epoch + 1)",
           test=f"{_OMITTED}[2]"),
    Mutant("R5", "a writer is idle inside an epoch whose manifest has vanished", _GAP, "        if state.phase is Phase.APPLYING:", "        if False:",
           test=f"{_WRITERS}/test_hostile_store.py::test_a_manifest_that_vanishes_inside_its_epoch_is_told_although_none_is_later"),
    Mutant("R5", "a manifest that came meanwhile is called missing", _FOLLOWER,
           "            found = await self._manifest(key)\n            if found is None:\n                raise missing",
           "            raise missing",
           test=f"{_WRITERS}/test_hostile_store.py::test_a_manifest_that_comes_while_the_later_ones_are_listed_is_not_called_missing"),
    Mutant("R5", "another segment than the manifest names is opened", "replication/sealed_segment.py",
           "        if bytes(content[-TAG_BYTES:]) != expected_tag:", "        if False:",
           test="tests/unit/replication/test_sealed_segment.py::test_a_segment_that_is_not_the_manifests_is_refused"),
    Mutant("R5", "a void manifest names segments", _MANIFEST,
           "        if self.flags & EpochFlag.VOID and (self.segments or self.cut is not None):", "        if False:",
           test="tests/unit/replication/test_epoch_manifest.py::test_a_manifest_that_makes_no_sense_cannot_be_built"),
    Mutant("R5", "what a void manifest leaves undone is forgotten", _LEDGER,
           "        self._pending.mark_runs(epoch.granules)\n        self._pending_changed()\n        nothing =", "        nothing =",
           test=f"{_AGENTS}/test_manifest_delivery.py::test_a_void_manifest_gives_its_granules_back"),
    Mutant("R5", "a void manifest is taken for an epoch", "mobility_agent/protection/manifest_delivery.py",
           "        if manifest.is_void:", "        if False:",
           test=f"{_AGENTS}/test_manifest_delivery.py::test_a_void_manifest_gives_its_granules_back"),
    Mutant("R5", "a void epoch states the time of its cut", _FOLLOWER, "        if manifest.is_void:", "        if False:",
           test=f"{_WRITERS}/test_epoch_application.py::test_void_epoch_advances_without_content"),
    Mutant("R5", "the lower batch wins", _APPLICATION, "for task in reversed(opened)]", "for task in opened]",
           test=f"{_WRITERS}/test_epoch_application.py::test_higher_batch_wins_where_batches_overlap"),
    Mutant("R5", "the lower batch wins in an epoch that is larger than the writer's memory", _APPLICATION,
           "enumerate(reversed(segments[first : first + GROUP_SEGMENTS]))", "enumerate(segments[first : first + GROUP_SEGMENTS])",
           test=f"{_WRITERS}/test_epoch_application.py::test_large_epoch_flows_through_few_slots[1-64]"),
    # ---- R7: the writer
    Mutant("R7", "a take-over does not raise the fence", _REPLICA,
           "(properties.sequence_number or 0) + 1,\n                lease_id", "(properties.sequence_number or 0),\n                lease_id",
           more=((_REPLICA, "sequence_number = (properties.sequence_number or 0) + 1", "sequence_number = properties.sequence_number or 0"),),
           test=f"{_WRITERS}/test_epoch_application.py::test_sequence_number_rises_with_each_epoch_and_take_over"),
    Mutant("R7", "pages are put without the fence", _REPLICA,
           '''                body,
                lease_id=self._lease_id,
                if_sequence_number_eq=self._sequence_number,''',
           '''                body,
                lease_id=self._lease_id,'''),
    Mutant("R7", "pages are cleared without the fence", _REPLICA,
           '''                length_bytes,
                lease_id=self._lease_id,
                if_sequence_number_eq=self._sequence_number,''',
           '''                length_bytes,
                lease_id=self._lease_id,''',
           test=f"{_WRITERS}/test_two_writers.py::test_copied_state_directory_does_not_make_two_writers[clear]"),
    Mutant("R7", "an epoch does not raise the fence", _APPLICATION, "        await self._replica.raise_fence()\n        await", "        await",
           test=f"{_WRITERS}/test_epoch_application.py::test_sequence_number_rises_with_each_epoch_and_take_over"),
    Mutant("R7", "the fence is not raised between an epoch's groups", _APPLICATION,
           "                await self._replica.raise_fence()\n            claims", "                pass\n            claims",
           test=f"{_WRITERS}/test_epoch_application.py::test_a_write_of_a_lower_group_that_arrives_late_does_not_land_on_a_higher_one"),
    Mutant("R7", "a writer that was overtaken inside an epoch sets back what is applied", _REPLICA,
           "        if properties.sequence_number != self._sequence_number or not mine:", "        if False:",
           test=f"{_WRITERS}/test_two_writers.py::test_writer_that_was_overtaken_inside_an_epoch_does_not_set_back_what_is_applied"),
    Mutant("R7", "only the metadata tell that a replica is another writer's", _REPLICA,
           "        if properties.sequence_number != self._sequence_number or not mine:", "        if not mine:",
           test=f"{_WRITERS}/test_two_writers.py::test_sequence_number_and_metadata_each_tell_that_a_replica_is_another_writers[sequence_number]"),
    Mutant("R7", "only the sequence number tells that a replica is another writer's", _REPLICA,
           "        if properties.sequence_number != self._sequence_number or not mine:", "        if properties.sequence_number != self._sequence_number:",
           test=f"{_WRITERS}/test_two_writers.py::test_sequence_number_and_metadata_each_tell_that_a_replica_is_another_writers[metadata]"),
    Mutant("R7", "segments are deleted before the receipt that covers them", _FOLLOWER,
           "        self._note_recovery()\n        await self._state_receipt(replica)\n        reached(\"sink.receipt.put\")",
           "        self._note_recovery()\n        await self._collect(manifest)\n        await self._state_receipt(replica)\n        reached(\"sink.receipt.put\")",
           test=f"{_WRITERS}/test_epoch_application.py::test_nothing_is_collected_before_the_receipt_says_that_its_epoch_is_applied"),
    Mutant("R12", "a point that was pruned comes back without its snapshots", "azure_sink/replica_writer/point_ledger.py",
           "        if not await self._snapshot_exists(own):", "        if False:",
           test=f"{_WRITERS}/test_points.py::test_a_point_that_was_pruned_while_its_record_was_on_its_way_does_not_come_back"),
    Mutant("R7", "a step is recorded over any state", _REPLICA,
           "encode_state(following), lease_id=self._lease_id, if_match=etag", "encode_state(following), lease_id=self._lease_id"),
    Mutant("R7", "pages that a full store has refused count as written", _REPLICA,
           '        with self._stopping_at_conflict("write"):',
           '        with self._stopping_at_conflict("write"), contextlib.suppress(BlobOverloaded):', under="troubled",
           more=((_REPLICA, "import BlobConflict, BlobNotFound", "import BlobConflict, BlobNotFound, BlobOverloaded"),)),
    Mutant("R7", "a snapshot is taken of any state", _REPLICA,
           "REPLICAS_CONTAINER, self._name, lease_id=self._lease_id, if_match=etag\n            )",
           "REPLICAS_CONTAINER, self._name, lease_id=self._lease_id\n            )",
           test=f"{_WRITERS}/test_two_writers.py::test_copied_state_directory_does_not_make_two_writers[snapshot]"),
    Mutant("R7", "an epoch is called applied before it is written", _APPLICATION,
           "            await together(self._write(batch, writes) for batch, writes in planned)\n",
           "            asyncio.get_running_loop().create_task(together(self._write(batch, writes) for batch, writes in planned))\n"),
    Mutant("R7", "a receipt is put over any other", _RECEIPT_BLOB, "                    if_match=self._etag,\n", ""),
    Mutant("R7", "a writer that lost a replica speaks for it", _FOLLOWER,
           "        replica = self._replica\n        if replica is not None and not replica.usable:",
           "        replica = self._replica if self.holds_replica else None\n        if False:",
           test=f"{_WRITERS}/test_two_writers.py::test_writer_that_lost_a_replica_inside_an_epoch_states_no_problem_of_it"),
    Mutant("R7", "the next epoch is written over a point that has no snapshot", _FOLLOWER,
           "            case Phase.POINT_DUE:\n                await self._points.take(replica)",
           "            case Phase.POINT_DUE:\n                replica.note_snapshot()",
           test=f"{_WRITERS}/test_points.py::test_a_point_whose_writer_died_before_its_snapshot_gets_it_before_the_next_epoch"),
    Mutant("R7", "orphans are swept before all generation records were read", _BOOK,
           "return self._is_full and disk not in self._entries", "return disk not in self._entries",
           test=f"{_WRITERS}/test_store_cleaning.py::test_orphans_stay_until_all_records_were_read"),
    Mutant("R7", "orphans are swept by what is remembered of the records", _CLEANING,
           "                if without_record[key.disk]:\n", "                if True:\n",
           test=f"{_WRITERS}/test_store_cleaning.py::test_a_record_that_was_put_after_the_last_look_keeps_its_disk"),
    # ---- R8: generations
    Mutant("R8", "a closed generation goes on", _FOLLOWER,
           "                await replica.record(GenerationClosed())\n", "                return ClosedGeneration(replica.state.applied.epoch, None)\n", under="history"),
    Mutant("R8", "the answer names another final epoch", "azure_sink/replica_writer/request_handlers.py",
           "final_epoch=closed.final_epoch", "final_epoch=closed.final_epoch + 1",
           test=f"{_WRITERS}/test_generations.py::test_closing_applies_what_is_complete_and_answers_the_final_epoch"),
    Mutant("R8", "a base of another history is built on", _OPENING,
           "    except HistoryDiverged:\n        return False", "    except HistoryDiverged:\n        return True",
           test=f"{_AGENTS}/test_ledger_opening.py::test_a_base_of_another_history_leaves_nothing_known_although_its_number_is_known"),
    Mutant("R8", "a torn epoch of another history is taken for ours", _OPENING,
           "    return not torn or _sealed_after(old, base, applied_hash)", "    return True",
           test=f"{_AGENTS}/test_ledger_opening.py::test_a_torn_epoch_of_another_history_leaves_nothing_known"),
    # ---- R9: freeze
    Mutant("R9", "a recovery point is made of whatever snapshots are there", _POINTS,
           """        return None
    parts = [snapshots[disk] for disk in sorted(mark.disks)]""",
           """        pass
    parts = [snapshots[disk] for disk in sorted(snapshots)]"""),
    Mutant("R9", "a write during the last round is overlooked", _COORDINATOR,
           "reason = self._read(rounds, freeze.remaining_s) or _seen_writing(rounds, quiesced=quiesced)",
           "reason = self._read(rounds, freeze.remaining_s)",
           test=f"{_AGENTS}/test_point_coordinator.py::test_a_write_to_what_cannot_be_frozen_makes_it_no_point"),
    Mutant("R9", "a write is seen only when the kernel has accounted for it", _TRACKER,
           """self._objects.totals().runs != self._flip.runs
                or self._kernel.accounted_sectors() != self._flip.accounted
                or self._kernel.writes_in_flight() > 0
                or not is_exact(self._accounts.ledger(), readings)""",
           "self._kernel.accounted_sectors() != self._flip.accounted",
           test=f"{_TRACKERS}::test_a_write_that_was_issued_since_the_flip_is_seen_before_it_is_accounted_for"),
    Mutant("R9", "a write that was taken back is overlooked", _TRACKER,
           "self._objects.totals().runs != self._flip.runs\n                or ", "",
           test=f"{_TRACKERS}::test_a_write_that_was_issued_and_taken_back_since_the_flip_is_seen"),
    Mutant("R9", "a write in flight whose issue was lost is overlooked", _TRACKER,
           "                or self._kernel.writes_in_flight() > 0\n", "",
           test=f"{_TRACKERS}::test_a_write_in_flight_whose_issue_was_lost_is_seen"),
    Mutant("R9", "a write that has landed and is not accounted for is overlooked", _TRACKER,
           "                or not is_exact(self._accounts.ledger(), readings)\n", "",
           test=f"{_TRACKERS}::test_a_write_that_was_in_flight_at_the_flip_and_has_landed_since_is_seen_before_it_is_accounted_for"),
    Mutant("R9", "a freeze that the watchdog ended counts", _COORDINATOR,
           '        elif reason in ("", _NO_TIME_LEFT):', "        elif reason == _NO_TIME_LEFT:"),
    Mutant("R9", "a file is written while frozen", _COORDINATOR,
           '''            cut_time_ns = time.time_ns()
            for part in rounds:''',
           '''            cut_time_ns = time.time_ns()
            rounds[0].session.parts.journal.save(rounds[0].session.ledger)
            for part in rounds:'''),
    Mutant("R9", "what is pending is not in the last round", _COORDINATOR,
           "        self.bitmap.mark_words(self.session.ledger.pending.words)\n", "",
           test=f"{_AGENTS}/test_point_coordinator.py::test_what_is_still_pending_after_the_rounds_before_it_is_in_the_last_round"),
    Mutant("R9", "an attempt that is no point is kept as one", _COORDINATOR,
           "return None if reason or part.runs is None else", "return None if part.runs is None else"),
    Mutant("R9", "what was read while frozen waits for the agent's limits", _SESSION,
           "paced=source is self.parts.reader", "paced=True",
           test=f"{_AGENTS}/test_point_coordinator.py::test_no_limit_delays_what_is_read_while_frozen_nor_what_is_shipped_of_it"),
    Mutant("R9", "a cutover waits for the agent's limits", _CUTOVER,
           "with self._coordinator.limits_lifted():", "with ExitStack():",
           test=f"{_AGENTS}/test_agent_cutover.py::test_once_the_disks_are_claimed_no_limit_makes_the_downtime_longer"),
    # ---- P1: acknowledgement
    Mutant("P1", "a batch is acknowledged before it is durable", _BATCHES, "            await self._spool.durable(sealed.written)\n", ""),
    Mutant("P1", "a manifest is acknowledged before it is durable", _MANIFESTS, "            await self._spool.durable(written)\n", ""),
    Mutant("P1", "an epoch is dropped without a receipt", _SESSION,
           "        return sealed if await self._manifests.put(sealed) else None",
           "        is_put = await self._manifests.put(sealed)\n        self.ledger.epochs.clear()\n        return sealed if is_put else None"),
    # ---- each fsync
    Mutant("fsync", "directories", _DURABLE, "        os.fsync(descriptor)\n    finally:", "        pass\n    finally:"),
    Mutant("fsync", "a replaced file's content", _DURABLE, "                os.fsync(descriptor)\n", ""),
    Mutant("fsync", "a replaced file's name", _DURABLE,
           "            raise\n        sync_directory(self.path.parent)", "            raise"),
    Mutant("fsync", "a name that is read after a crash", _DURABLE,
           "            return None\n        sync_directory(self.path.parent)", "            return None", under="agent scan"),
    Mutant("fsync", "a removal", _DURABLE,
           "        with contextlib.suppress(FileNotFoundError):\n            sync_directory(self.path.parent)", "",
           test="tests/unit/replication/test_durable_file.py::test_a_removal_is_durable"),
    Mutant("fsync", "a directory that is made", _DURABLE, "            sync_directory(path.parent)", "            pass"),
    Mutant("fsync", "the digest table's header", _TABLE,
           "_CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)), 0)\n        os.fsync(self._descriptor)",
           "_CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)), 0)", under="agent scan"),
    Mutant("fsync", "the digest table's entries", _TABLE,
           "    def _end(self, epoch: EpochId) -> None:\n        os.fsync(self._descriptor)", "    def _end(self, epoch: EpochId) -> None:",
           under="agent scan"),
    Mutant("fsync", "what a new generation's table forgets", _TABLE,
           "            self._clear(runs)\n        os.fsync(self._descriptor)", "            self._clear(runs)",
           test=f"{_TABLES}::test_a_power_cut_leaves_no_table_of_the_new_name_that_knows_what_was_to_be_forgotten"),
    Mutant("fsync", "the spool's records", _LOG, "                    file.file.sync()", "                    pass"),
    Mutant("fsync", "a spool file's name", _LOG, "                self._files.sync_directory()\n", ""),
    Mutant("fsync", "void records that are cut off", _LOG, "            reached(\"process.void.cut\")\n            file.file.sync()\n",
           "            reached(\"process.void.cut\")\n",
           test=f"{_SPOOLS}/test_spool_failing_disks.py::test_void_records_never_come_back_beside_those_that_bear_their_numbers"),
    Mutant("fsync", "records that recovery counts", _RECOVERY,
           "                    file.sync()\n                    file.forget_cache()", "                    file.forget_cache()",
           test=f"{_SPOOLS}/test_spool_log.py::test_a_tail_that_was_written_and_not_torn_counts_from_now_on"),
    Mutant("fsync", "what recovery fills in", _RECOVERY, "                file.sync()\n            finally:", "                pass\n            finally:",
           test=f"{_SPOOLS}/test_spool_failing_disks.py::test_what_recovery_found_torn_does_not_count_after_the_next_power_cut_either"),
    Mutant("fsync", "fdatasync of the spool", _FILES, "        os.fdatasync(self._descriptor)", "        pass"),
    Mutant("fsync", "the spool's directory", _FILES, "        sync_directory(self._directory)", "        pass"),
    # Those of the Blob service, which the simulation does not run.
    Mutant("fsync", "the store's bodies", _ARENAS, "                    os.fdatasync(self._handle(number).descriptor)", "                    pass",
           test=f"{_SYNCS_FAIL}::test_a_body_that_could_not_be_synced_is_refused_and_the_store_goes_on"),
    Mutant("fsync", "an arena's name", _ARENAS, "            sync_directory(self._directory)", "            pass",
           test=f"{_SYNCS_FAIL}::test_an_arena_whose_entry_could_not_be_synced_is_never_used"),
    Mutant("fsync", "the catalog's log", _CATALOG, "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL",
           test=f"{_SYNCS_FAIL}::test_what_a_failed_sync_of_the_log_left_reads_back_whole[blob-kill]"),
    Mutant("fsync", "the catalog, before its log is folded", _CATALOG, "PRAGMA synchronous = FULL", "PRAGMA synchronous = OFF",
           test=f"{_SYNCS_FAIL}::test_a_fold_of_the_log_that_fails_to_sync_ends_the_store_and_loses_nothing"),
    Mutant("fsync", "what the catalog's log shows at the start", _CATALOG, "        os.fsync(descriptor)\n    except", "    except",
           test=f"{_COMMITTERS}::test_a_log_that_cannot_be_written_again_is_not_believed"),
    Mutant("fsync", "the catalog's name", _CATALOG, "    sync_directory(path.parent)", "    pass",
           test=f"{_COMMITTERS}::test_a_catalog_whose_name_cannot_be_synced_is_not_opened"),
    # Of a claimed disk (a cutover's, a failback's): what is compared is what lies on it.
    Mutant("fsync", "what was written to a file before it is claimed", _STANDSTILL,
           "        os.fsync(self._descriptor)\n        try:", "        try:",
           test=f"{_CLAIMS}::test_what_was_written_before_is_on_the_disk_though_no_lease_is_granted"),
    Mutant("fsync", "what the last writer wrote before the lease", _STANDSTILL,
           "        os.fsync(self._descriptor)  # the last writer may have come between the first and the lease\n", "",
           test=f"{_CLAIMS}::test_what_the_last_writer_wrote_before_the_lease_is_on_the_disk"),
    Mutant("fsync", "what lies in the page caches of a disk's nodes", _STANDSTILL,
           "            os.fsync(descriptor)\n        finally:", "            pass\n        finally:",
           test=f"{_CLAIMS}::test_every_node_of_a_disk_is_written_back_and_a_failure_is_told"),
    # The configuration server's, and those of every daemon's identity.
    Mutant("fsync", "the configuration server's commits in PostgreSQL", "config_server/postgresql.py",
           '"synchronous_commit": "on",', '"synchronous_commit": "off",',
           test="tests/unit/config_server/test_database.py::test_every_connection_is_durable_and_checks_references[postgresql]"),
    Mutant("fsync", "the configuration server's commits", "config_server/database.py", '"synchronous=FULL"', '"synchronous=NORMAL"',
           test="tests/unit/config_server/test_database.py::test_every_connection_is_durable_and_checks_references[sqlite]"),
    Mutant("fsync", "the name of a renewed key", "replication/tls_identity.py",
           "            sync_directory(self.directory)", "            pass",
           test="tests/unit/replication/test_renewal.py::test_a_renewed_key_whose_name_cannot_be_synced_is_told"),
)  # fmt: skip
