// Package phase is the life of one operation, a DataUpload or a DataDownload, as a pure
// function: Next takes the current phase and an Observation, and returns the next phase,
// what to record, and when to look again.
//
//	New ──▶ Accepted ──▶ Prepared ──▶ InProgress ──▶ Completed
//	  │         │            │             │
//	  │         │            │             ├───────▶ Failed (from every phase on the left)
//	  └─────────┴────────────┴─────────────┴───────▶ Canceling ──▶ Canceled
//
// # Two steps to an end
//
// First the Outcome is decided and recorded, while everything that proves it still
// exists. Then the controller releases what the operation used, and only then the
// terminal phase is set. So a crash at any point leaves either the proof or the record,
// and a terminal operation leaves nothing behind. If the release itself runs out of time,
// the message names what is left.
//
// # The phases
//
//	phase        the operation                        next                       at most
//	New          makes its source safe, then waits    Accepted: safe, slot free  Secure for the source;
//	             for a slot                                                      Velero's timeout for the slot
//	Accepted     waits for the node and the volume    Prepared: pod scheduled    Prepare, per attempt
//	             of the mover pod
//	Prepared     waits for the mover pod to start     InProgress: pod runs       Prepare, per attempt
//	InProgress   moves data                           Outcome: pod reported      the deadline of the pod,
//	                                                                             per attempt
//	Canceling    was canceled; releases               Canceled: all is released  Release
//	Completed    ended; the data is in its place      none
//	Failed       ended; the message says why          none
//	Canceled     ended on request                     none
//
// An operation with an Outcome of Completed or Failed keeps its phase until everything is
// released (at most Release). A completed result has to reach its destination first, and no
// clock takes it back: after Deliver the message says that it is late, and the operation
// waits on. Velero's item operation timeout cancels an operation in any phase.
//
// A limit counts only what was observed. While a step fails with an error that may pass
// (Unknown), or waits for a quota or for what somebody else does (Held), no limit runs. It
// starts again afterwards. An error that lasts for Prepare ends the operation.
//
// The phase never goes back. A second attempt stays in the phase that the first one had
// reached: Prepare bounds the time until its pod runs.
//
// # Scenario: the first mover pod is lost
//
// The node of the mover pod goes away. The second attempt waits for Limits.Backoff, and
// continues from the checkpoint of the first, which is in the repository.
//
//	Work       Scheduled   Running     Lost                       Waiting   Running   Succeeded
//	phase      Prepared ─▶ InProgress ─────────────────────────────────────────────▶ Completed
//	Attempt    1           1 Started   2, Since = now, Reason     2         2 Started    ▲
//	After      Prepare                 Backoff                    Prepare                │ released
//	Outcome                                                                 Completed ───┘
//
// Started tells a pod that is gone from one that does not exist yet: only an attempt that
// was seen running can be lost by having no pod. When as many attempts as Limits.Attempts
// are lost without progress, the outcome is Failed. Progress is more bytes than any earlier
// attempt had done.
//
// # Scenario: the object store is away
//
// The object store does not answer for longer than one request is repeated. The mover pod
// reports that, and its checkpoint stays. Such an attempt is Suspended, not lost: only time
// ends an operation that waits for its object store.
//
//	Work       Running   Suspended    Running   Suspended   Running      Succeeded
//	Attempt    1         2            2         3           3
//	Outage               now          as before as before   until there is progress
//
// After Limits.Patience without progress, the outcome is Failed.
//
// # Scenario: canceled while queued
//
// All slots are taken. There is no pod, so there is nothing to stop; the re-homed
// VolumeSnapshot of an upload has to be released all the same.
//
//	Work       Secured             (not observed)
//	Slot       false
//	Cancel     false               true
//	phase      New ──────────────▶ Canceling ────────────────▶ Canceled
//	message    queued: …           canceled on request         canceled on request
//	Outcome                        Canceled                    Released, or Release has passed
//
// A queued operation has no limit of its own: Cancel or a free slot ends the wait.
//
// # Scenario: canceled when the image is saved
//
// The manager was away while the mover pod of a backup came to its end, and while somebody
// canceled the backup. The image is saved, so the backup is complete. If it were called
// canceled, nobody would know of the image when the backup is deleted.
//
//	Work       Running     Succeeded
//	Cancel     false       true
//	Committed              true
//	phase      InProgress ───────────────────▶ Completed
//
// # Scenario: a restore whose hand-over waits
//
// The mover pod has written the volume. The storage takes minutes to detach it from the
// node of that pod, and until then the target PVC cannot have it.
//
//	             pod reported    detaching    reserved    target PVC bound    released
//	Work         Succeeded       (not observed any more)
//	Outcome      Completed       Completed    Completed   Completed           Completed
//	Committed                    false        true        true                true
//	Delivered                    false        false       true                true
//	phase        InProgress ───────────────────────────────────────────────▶ Completed
//	canceled                     Canceling;   ignored: the volume is the user's now
//	                             the volume
//	                             is deleted
//
// Until the result is delivered, the message is what Left names, and after Deliver also
// since when. The volume is kept until it is delivered or the operation is canceled.
//
// The package is pure.
package phase
