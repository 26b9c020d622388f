// Package kopia keeps volume images in a kopia repository, in a form that stock
// kopia lists, verifies and restores.
//
// # What is stored
//
// One volume backup is one snapshot manifest of kopia, with the source
// default@default:snapshot-data-upload-download/blockmover/<namespace>/<pvc>
// (the shape that Velero's own data movers use). Its root is a directory of two
// files:
//
//	disk.raw     the volume, padded with zeros to a whole chunk
//	volume.json  repository.Meta and the object IDs of zero chunks
//
// disk.raw is an indirect object in two levels:
//
//	root     I x<content>   entries of SegmentSize bytes, each a segment
//	segment  I x<content>   entries of ChunkSize bytes, each a chunk, or of PageSize
//	                        bytes where a chunk is in pages
//	chunk    <content>      the bytes
//
// An indirect object is a list of (start, length, object) in JSON. The list is itself an
// object, so a long one is stored in pieces ("II"). A backup that changes little writes the
// chunks, their segments, and the pieces of the root that name them. All other pieces exist
// already. The file index.go has all that this program knows about that JSON.
//
// Three levels would make a backup smaller. But stock kopia reads a whole entry of an
// indirect object into memory, so an entry must not be larger than a segment.
//
// # Chunks in pages
//
// An entry is always a whole object, so a part of a chunk cannot be replaced. So when an
// incremental image changes a part of a chunk, it stores the whole chunk in pages, once.
// Later images store only the pages that change. Zero pages are not stored again. A chunk
// that is put whole is one entry again. A chunk with only zero pages is the zero chunk.
//
// # Why these sizes
//
// They were chosen by measurement: 10 increments, each of which writes 1 % of 64 MiB of
// random bytes in places after Zipf's law (TestAmplification). The figures are bytes before
// compression as multiples of what changed, for the first increment and as the mean of the
// last five:
//
//	chunk     page      4 KiB writes              64 KiB writes
//	                    first   last     index    first   last    index
//	1 MiB     -         143     142      0.01     16.0    10.6    0.00
//	1 MiB     16 KiB    143     4.59     0.82     16.0    6.60    0.18
//	256 KiB   16 KiB    52.1    10.7     0.64     4.0     2.62    0.10
//	128 KiB   16 KiB    29.0    10.7     0.47     2.0     1.52    0.09
//	64 KiB    16 KiB    15.1    8.18     0.39     1.0     1.00    0.09
//	64 KiB    8 KiB     15.1    6.93     0.64     1.0     1.00    0.09
//	64 KiB    4 KiB     15.1    6.30     1.13     1.0     1.00    0.09
//	32 KiB    8 KiB     8.0     4.53     0.61     1.0     1.00    0.11
//
// The first change of a chunk costs the whole chunk. With large chunks the same places become
// cheap sooner, because a split chunk covers more of them. But all ten increments together
// cost far more. Below 8 KiB the index grows as fast as the pages shrink.
//
// Small chunks cost index; see repository.DefaultChunkSize. They find as many equal contents
// as large ones.
//
// # What a running operation holds
//
// An incremental image refers to contents that it does not write. kopia sees that they
// are in use only when a manifest refers to them, and the image has none before it is
// saved. Until then the manifest of the parent keeps them. If somebody deletes it, nothing
// does. So Commit looks for the parent once it has saved the image. If the parent is gone,
// maintenance may have looked for manifests when there was neither, and Commit fails and
// deletes what it saved.
//
// An operation that runs for longer than a minute would lose too much that way. So it
// has an incomplete manifest from then on, the hold, with the directory of the parent as its
// root. From checkpoint to checkpoint, the hold refers to more of the new image. After
// the first one is written, the parent must still be there, and may go later. Commit
// replaces the hold by the real manifest in one flush. Discarding the image deletes it.
// Stock kopia takes a hold for one of its own checkpoints: it hides the hold from its lists,
// and its garbage collection keeps what the hold refers to. A hold is never a repo snapshot
// of the Catalog.
//
// Most operations need less than a minute. They flush once, and leave one index blob.
//
// A hold belongs to one operation. Two operations on one volume have two, and neither
// touches that of the other. A later run of the same operation takes over the hold that
// it finds. An operation that is never repeated leaves its hold behind. NewWriter deletes
// every hold that is older than 24 hours, whatever its volume: nobody here can know that
// an operation is dead, but a living one writes its hold anew every quarter of an hour.
// An operation whose hold is deleted too early is unprotected until it renews it.
//
// # Checkpoints
//
// After every few GiB that were put, Advance flushes the session and makes the hold refer
// to a directory of what is stored so far:
//
//	disk.raw        the image, ending after the last finished segment
//	volume.json     that of the image
//	parent          the directory of the parent; only in an incremental image
//	unfinished.raw  the zero chunk and the chunks of unfinished segments
//
// A later run of the operation continues after the end of disk.raw if it makes the same
// image: its volume.json differs in snapshotTime at most. The last two entries are there
// for garbage collection alone.
//
// # What is not promised
//
// Contents that are uploaded and that no manifest refers to are protected by the safety
// delays of kopia's maintenance, as with every kopia client. Maintenance without them may
// delete packs while a backup writes them. So the writer looks for its packs at each
// checkpoint and at Commit. Where one is gone, it fails, and there is no image. Commit
// looks after it has saved the image: a run that is killed in between leaves an image
// that nobody has looked at. The next run of the operation does so, with Check.
package kopia
