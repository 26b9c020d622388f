// Package qcow2 reads qcow2 files: the disk that a file holds, and which parts of it. It
// never writes one.
//
// Terms: a Layer is one file. A layer says of each part of its disk that it is Data, Zero or
// Absent; what is absent is in the layer below. A Stack is layers in an order that the
// caller gives, over a base. The name of a backing file that is embedded in a file is never
// opened: it is a path on another machine, at another instant.
//
//	top      incremental file   Data Zero  -    -    -
//	         ...
//	bottom   incremental file    -    -   Data  -    -
//	base     image of the parent xxxx xxxx xxxx xxxx xxxx     or nothing: zeros
//
// A Stack is a device.Reader and a cbt.Source. So a file that holds what changed since a
// checkpoint is backed up like a device whose storage tells what changed: it is folded into
// the image, and the image is complete.
//
// # What is supported
//
// Versions 2 and 3, clusters of 512 bytes to 2 MiB, extended L2 entries, compressed clusters
// (zlib and zstd). Open refuses encryption, an external data file, an incompatible feature
// that it does not know, a file that is marked corrupt, and one that its writer has not
// closed (dirty): whoever wrote it was killed.
//
// # Untrusted input
//
// Every number in a file may be wrong, or made to do harm. A table is read piece by piece, at
// the place where it is needed, so memory does not depend on what a file claims. Check walks
// through the whole mapping before anything of a file is used. It finds clusters and tables
// outside the file or used twice (so a table that leads to itself, too), and a count of
// references that says that something in use is free.
//
// Source: docs/interop/qcow2.rst of QEMU. The package is pure.
package qcow2
