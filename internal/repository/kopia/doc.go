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
//	segment  I x<content>   entries of ChunkSize bytes, each a chunk
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
// # What is not promised
//
// Contents that a running backup inherits from its parent are protected by the
// parent's manifest alone: deleting the parent, and a maintenance run without
// kopia's safety delays, could take them before the new manifest is saved.
package kopia
