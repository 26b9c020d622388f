// Package xfs reads XFS file systems, versions 4 and 5, in the image of a volume. It shows what a
// mount would show, and never writes.
//
// # Layout
//
// The device is cut into allocation groups of equal size. The superblock is at its start. A block address names a group
// and a block in it; an inode number names a group, a block and an inode in that block. An inode has a core and two forks:
// data, and extended attributes. Each fork holds its content itself (local), a list of extents, or the root of a B+tree
// of extents. The content of a directory is in blocks of its data fork, below 32 GiB; what is above is an index
// that a reader does not need. All of it is big-endian. In version 5 each metadata block has a CRC32C, the UUID of
// the file system, its own address and its owner. All four are checked.
//
// # The log
//
// Metadata is written to the log first. The log of a mounted file system holds changes that are not in their
// places yet. Open finds the head and the tail of the log as the kernel does, reads the records between them once, and keeps what
// committed transactions changed in memory, as an overlay over the device:
//
//	find the head:     cycle numbers of blocks, then CRCs of the last records (torn writes)
//	for each record from tail to head:
//	    for each operation: append to its transaction
//	    at a commit: buffers, then inodes, then cancelled buffers:
//	        buffer:    keep the newest bytes of each 128-byte chunk
//	        inode:     keep the newest core, data fork and attribute fork
//	        icreate:   the inodes of this chunk begin anew
//	        cancelled: forget what was kept of this buffer
//	        intent:    remember until it is done
//
// Whether a change is newer than the block on the device is decided when the block is read, by the log sequence number (LSN) in
// it. So replay reads nothing but the log. A block that the overlay changed has no valid checksum; the kernel computes it when it
// writes the block.
//
// The kernel finishes intents that were not done when the system stopped. Those that free space, or that count who uses it,
// change nothing that a reader sees. The others are listed in Describe().Notes, and reading what they change (the content of a
// file, or its attributes) is an error that wraps filesystem.ErrUnsupported: it may be half of the change.
//
// # Memory and reads
//
// Metadata is read in pages of 64 KiB, of which 16 MiB are kept. The overlay holds at most 256 MiB of logged bytes; Open refuses a
// log with more. An uncommitted transaction counts, too. Records are at most 256 KiB. The extended attributes of a file are at most 16 MiB.
//
// # What is not promised
//
// An external log, metadata directories (metadir), zoned devices and directories of version 1 are refused by Open. A file on
// a realtime device is refused by name. A log that was written by a big-endian machine is refused, as the kernel does. Quotas
// and project IDs are not shown. Free space, allocation groups and the index of directories are not read, so
// their damage goes unnoticed.
//
// Sources: "XFS Algorithms & Data Structures" (3rd edition), and the kernel's fs/xfs/libxfs (xfs_format.h, xfs_log_format.h,
// xfs_da_format.h), xfs_log_recover.c and xfs_*_item_recover.c as of Linux 6.18.
//
// The package is pure.
package xfs
