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
// An indirect object is a list of (start, length, object) in JSON. The list is
// itself an object, so a long one is stored in pieces ("II"): a backup that
// changes little writes the chunks, their segments, and the pieces of the root
// that name these. All other pieces are found to exist already. file index.go has
// all that is known here about that JSON.
//
// Three levels would make a backup smaller still, but stock kopia reads an
// entry of an indirect object into memory as a whole, so no entry may be larger
// than a segment.
//
// # Chunks in pages
//
// An entry is always a whole object, so a part of a chunk cannot be replaced. A
// chunk of which an incremental image changes a part is therefore stored in pages,
// all of them, once; from then on only the pages that change. Zeros are in pages
// without being stored. A chunk that is put as a whole is one entry again, and one
// of which all pages are zero is the zero chunk.
//
// # Why these sizes
//
// They were chosen by measurement: 10 increments that each write 1 % of 64 MiB of
// random bytes, in places after Zipf's law (TestAmplification). Bytes before
// compression, as multiples of what changed; the first increment, and the mean of
// the last five:
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
// The first change of a chunk costs the chunk. With large ones the same places
// become cheap sooner, since a chunk that is split covers more of them, but what all
// ten increments cost together is far more. Below 8 KiB the index grows as fast as
// the pages shrink.
//
// What small chunks cost is index: see repository.DefaultChunkSize. They find no
// fewer equal contents than large ones do.
//
// # What a running operation holds
//
// An incremental image refers to contents that it does not write, so kopia sees
// that they are in use only when the image has a manifest. Until then the
// operation has one that is incomplete, the hold: NewWriter writes it before it
// looks at the parent's segments, with the parent's directory as its root; Commit
// makes it refer to the new image; Save replaces it, in one flush, by the real one;
// Abort deletes it. Stock kopia takes it for a checkpoint: hidden from its lists,
// respected by its garbage collection. It is never a repo snapshot of the Catalog.
//
// Holds belong to one operation. Two operations on one volume each have their
// own and do not touch the other's; a later run of the same operation takes over
// what it finds. An operation that is never repeated leaves its hold behind: the
// next NewWriter in the repository, for any volume, deletes holds that are older
// than 24 hours. That an operation is dead cannot be known here, but a living one
// writes its hold anew every quarter of an hour. Were a hold deleted too early, the
// operation would be as unprotected as it was without it, until it renews it.
//
// # Checkpoints
//
// After every few GiB that were put, and in Advance only, the writer flushes and
// makes its hold refer to a directory of what is stored so far:
//
//	disk.raw        the image, ending after the last finished segment
//	volume.json     that of the image
//	parent          the parent's directory; only in an incremental image
//	unfinished.raw  the zero chunk and the chunks of unfinished segments
//
// A later run of the operation that is to make the same image, by all of its
// volume.json but snapshotTime, goes on after the end of disk.raw. The last two entries are there
// for garbage collection alone. An image that is committed and not saved is a
// checkpoint too, the one that has all segments.
//
// # What is not promised
//
// What is uploaded and not yet referred to is protected by kopia's safety
// delays, as it is with every kopia client: maintenance without them, at the
// moment at which a backup uploads, may delete packs that are being written. The
// writer looks for its packs at each checkpoint and at Commit, and fails where
// some are gone: there is no image, and not one that lacks something.
package kopia
