package extract

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// handle is an open file, or one that cannot be opened, by its name in an open directory.
type handle struct {
	fd     int
	parent int // -1 for an open file
	name   string
}

func (h handle) chown(uid, gid int) error {
	if h.parent < 0 {
		return unix.Fchown(h.fd, uid, gid)
	}
	return unix.Fchownat(h.parent, h.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

// chmod is not for symbolic links, which have no mode.
func (h handle) chmod(mode uint32) error {
	if h.parent < 0 {
		return unix.Fchmod(h.fd, mode)
	}
	fd, err := unix.Openat(h.parent, h.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchmodat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), mode, 0), unix.Close(fd))
}

func (h handle) setTimes(times []unix.Timespec) error {
	if h.parent < 0 {
		return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", h.fd), times, 0)
	}
	return unix.UtimesNanoAt(h.parent, h.name, times, unix.AT_SYMLINK_NOFOLLOW)
}

func (h handle) setAttribute(name string, value []byte) error {
	if h.parent < 0 {
		return unix.Fsetxattr(h.fd, name, value, 0)
	}
	return unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", h.parent, h.name), name, value, 0)
}

// metadata sets owner, mode, attributes and times, in this order: a new owner takes bits of the mode and capabilities away, a
// mode changes an ACL, and all change the times.
func (t *tree) metadata(item *Item, h handle) error {
	info := item.Info
	if t.asRoot {
		if err := h.chown(int(info.UID), int(info.GID)); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	} else if int(info.UID) != os.Geteuid() || int(info.GID) != os.Getegid() {
		t.lost(LostOwner)
	}
	if info.Mode.Type() != fs.ModeSymlink {
		mode := filesystem.UnixMode(info.Mode)
		if !info.Mode.IsDir() && info.Mode&special != 0 && !t.o.Special {
			mode &^= unix.S_ISUID | unix.S_ISGID
			t.lost(LostSpecial)
		}
		if err := h.chmod(mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	attributes, err := t.files.Attributes(item.ID)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		if err := t.attribute(h, name, attributes[name]); err != nil {
			return err
		}
	}
	times := []unix.Timespec{timespec(info.Accessed), timespec(info.Modified)}
	if err := h.setTimes(times); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// attribute sets an attribute. That the file system does not take it is no error.
func (t *tree) attribute(h handle, name string, value []byte) error {
	system := strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "trusted.")
	if system && !t.o.Special {
		t.lost(LostAttribute)
		return nil
	}
	err := h.setAttribute(name, value)
	for _, refused := range []error{unix.EOPNOTSUPP, unix.EPERM, unix.EACCES, unix.E2BIG, unix.ENOSPC, unix.ERANGE, unix.EINVAL} {
		if errors.Is(err, refused) {
			t.lost(LostAttribute)
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("set attribute %q: %w", name, err)
	}
	return nil
}

// timespec leaves a time that is not known as it is.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
