// Package filesystem is the vocabulary of the readers that look into the file system of a
// volume image, without mounting it. Each kind of file system has a reader in a package below.
//
// A reader is given the bytes of the device, as they were at the instant of the VolumeSnapshot.
// The file system was in use then: its journal may hold changes that are not in their places
// yet. A reader replays the journal in memory, as the kernel does when it mounts, and shows what
// a mount would show. It never writes.
//
// Every structure on the device is hostile input. A number is checked before it is used: what is out of
// range, points back at itself or fails its checksum ends in an error that wraps ErrDamaged, never
// in a panic, an endless loop, or memory without bounds.
//
// The package is pure.
package filesystem

import (
	"errors"
	"io"
	"io/fs"
	"iter"
	"time"

	"github.com/blockmover/blockmover/internal/block"
)

// ErrDamaged is wrapped by every error that says that a file system violates its format.
var ErrDamaged = errors.New("file system is damaged")

// ErrUnsupported is wrapped by every error that says that a file system uses what its reader
// does not know. The error names the feature.
var ErrUnsupported = errors.New("file system has a feature that is not supported")

// ErrOther is wrapped by the error of an Open whose device holds no file system of its kind.
var ErrOther = errors.New("not this kind of file system")

// ID identifies a file of a file system: the number of its inode where there are any.
type ID uint64

// Description is what a file system says of itself.
type Description struct {
	// Kind is the name that mount knows: ext4, xfs, vfat.
	Kind string
	// Label and UUID are empty if there are none.
	Label, UUID string
	// Notes say, in sentences for people, how what is shown differs from what is on the device: for
	// example, that the journal was replayed.
	Notes []string
}

// Info describes a file.
type Info struct {
	// Mode has the type and the permissions, with setuid, setgid and sticky. What is none of the types of
	// package fs is fs.ModeIrregular.
	Mode fs.FileMode
	// UID and GID are numbers of the system that wrote the file.
	UID, GID uint32
	// Links is how many names the file has.
	Links uint32
	// Size in bytes: the content of a regular file, the length of the target of a symbolic link. For
	// others it means nothing.
	Size int64
	// Major and Minor are the device numbers of a device node.
	Major, Minor uint32
	// Times are in UTC. What the file system does not keep is the zero time.
	Modified, Changed, Accessed time.Time
}

// Entry is one name in a directory. The name may have any byte but '/' and NUL.
type Entry struct {
	Name string
	ID   ID
}

// FileSystem reads one file system. It is safe for concurrent use. An error of the device is
// returned as it is, wrapped. The sequences end after their first error.
//
// An ID comes from Root or from an Entry. Others, and those of deleted files, are an
// error that wraps fs.ErrNotExist or ErrDamaged.
type FileSystem interface {
	Describe() Description
	Root() ID
	Stat(id ID) (Info, error)
	// ReadDir yields the entries of a directory, without "." and "..", each once, in an order that is always
	// the same. What is no directory is an error.
	ReadDir(id ID) iter.Seq2[Entry, error]
	// ReadLink returns the target of a symbolic link. What is no symbolic link is an error.
	ReadLink(id ID) (string, error)
	// Open returns the content of a regular file of Info.Size bytes; at its end ReadAt returns io.EOF. Holes
	// and what was reserved and never written read as zeros. What is no regular file is an error.
	Open(id ID) (io.ReaderAt, error)
	// Extents yields the ranges of a regular file that hold data, in ascending order, without overlap, inside the
	// file. All others read as zeros.
	Extents(id ID) iter.Seq2[block.Extent, error]
	// Attributes returns the extended attributes by the names that the kernel shows to root, with their
	// prefixes (user., trusted., security., system.posix_acl_access …), and with the values that it shows. A
	// file without any has an empty map.
	Attributes(id ID) (map[string][]byte, error)
}
