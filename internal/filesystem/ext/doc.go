// Package ext reads ext2, ext3 and ext4. It is pure.
//
// # The layout
//
// The superblock, at byte 1024, has the size of blocks, groups and inodes, and the features. A group descriptor says where the
// inodes of its group are. An inode has the mode, owner and times of a file, and 60 bytes for where the file is: a tree
// of extents, or 12 block numbers and three blocks of block numbers, or the content itself, or a short target, or
// the numbers of a device. Names are in the blocks of directories. Extended attributes are behind the fields of an inode, in a
// block of their own, or, if they are large, each in an inode.
//
// All of it is little endian. With the feature metadata_csum, each structure has a checksum, and what fails its
// checksum is not read. A directory is read from its first block to its last: the tree of hashes in it is skipped.
//
// # The journal
//
// The journal of jbd2 is a ring of blocks in a file, and big endian. A transaction is some descriptor blocks, each followed by the
// blocks that it names, some revoke blocks, which name blocks that are free, and one commit block. Recovery reads it once:
//
//	for each transaction, until one has no valid commit block:
//	    for each block of it: remember the place in the journal as the last version
//	    for each block that it revokes: remember the transaction
//	forget each version that is not newer than the transaction that revokes its block
//
// From then on, the reader takes a block from the journal if the journal has a version of it, and from its place otherwise. Only
// places are kept in memory: about 60 bytes for each block, 16 MiB for 1 GiB of journal. The bound is 2,097,152 blocks,
// 130 MiB. Beyond it, Open returns an error.
//
// Fast commits are changes of files, not of blocks: this file has those blocks, that directory has this name. They are kept in
// memory as such, with 64 MiB of inodes at most, and are applied when a file or a directory is read. They do not say when a directory changed, nor how many
// links it has. The kernel makes the times up when it replays; this reader shows those of before. A device node
// or a short symbolic link of a fast commit is shown as it was made.
//
// # Reads
//
// Metadata is read in pages of 64 KiB and kept in a cache of 16 MiB, what the journal has in one of 4 MiB. Open reads the
// superblock and two to four pages, and what the journal holds. The content of files is read as asked for, and not kept.
//
// # What is damaged
//
// A number is checked before it is used, so that the reader comes to an end with memory that is bounded. What is damaged is an
// error of the file or the directory that it belongs to. The others can be read. In a directory, the blocks that are
// intact are shown first, and the error comes at the end. A damaged journal is replayed up to the damage, and
// Describe says so.
//
// # What is not promised
//
//   - Files that are encrypted: their attributes are shown, their names and content are an error.
//   - A journal on another device. If it has changes, Open returns an error.
//   - Fast commits of many processes at once. The kernel that this was compared with (6.18) does not always replay its own: in
//     some of 150 rounds of random changes it did not mount, or made a name twice. In one round the content of one file
//     was different, and it is not known who was right.
//   - Backup copies of the superblock, of the group descriptors or of the inode of the journal are not used.
//   - Names that differ only in case are different names, even in a directory that folds case.
//   - Compression (e2compr), the directory data of Lustre, and the translators of the Hurd.
//   - Files that are deleted, but still open, are not shown. The kernel deletes them when it mounts.
//
// # Sources
//
// Documentation/filesystems/ext4 of the Linux kernel (superblock, group_descr, inodes, ifork, directory, attributes, inlinedata,
// checksums, journal with fast commits), and what the kernel does where that is silent. The tests compare with what it shows
// of the same image.
package ext
