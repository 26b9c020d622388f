package disk

import (
	"encoding/binary"
	"errors"
)

const kindLVM = "lvm2"

// known are things that are no file system, or none that is read here, by their magic numbers (util-linux: libblkid).
var known = []struct {
	kind   string
	at     int64
	magic  string
	reason string
}{
	{"crypto_LUKS", 0, "LUKS\xba\xbe", "it is encrypted with LUKS: without the key its files can't be read"},
	{"swap", 4086, "SWAPSPACE2", "it is swap space: it has no files"},
	{"swap", 4086, "SWAP-SPACE", "it is swap space: it has no files"},
	{"swap", 65526, "SWAPSPACE2", "it is swap space: it has no files"},
	{"btrfs", 65536 + 64, "_BHRfS_M", unknownKind},
	{"f2fs", 1024, "\x10\x20\xf5\xf2", unknownKind},
	{"ntfs", 3, "NTFS    ", unknownKind},
	{"exfat", 3, "EXFAT   ", unknownKind},
	{"squashfs", 0, "hsqs", unknownKind},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0", unknownKind},
	{"iso9660", 32769, "CD001", unknownKind},
	{"reiserfs", 65536 + 52, "ReIsEr", unknownKind},
	{"jfs", 32768, "JFS1", unknownKind},
	{"bluestore", 0, "bluestore block device", unknownKind},
	{"bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "it belongs to bcache: restore the volume, and assemble it there"},
	{"linux_raid_member", 0, "\xfc\x4e\x2b\xa9", raid},
	{"linux_raid_member", 4096, "\xfc\x4e\x2b\xa9", raid},
}

const (
	unknownKind = "files of this kind of file system can't be read: restore the volume, and mount it"
	raid        = "it is a member of a RAID: restore the volume, and assemble it there"
)

// identify names what a part holds that is no file system that can be read. Nothing known is an empty part, or unknown.
func identify(p Part) (Part, error) {
	for _, k := range known {
		is, err := has(p, k.at, k.magic)
		if err != nil {
			return p, err
		}
		if is {
			p.Kind, p.Reason, p.Content = k.kind, k.reason, nil
			return p, nil
		}
	}
	for _, k := range []struct {
		kind, reason string
		find         func(Part) (bool, error)
	}{
		{"zfs_member", "it belongs to a ZFS pool: restore the volume, and import it there", hasZFS},
		{"linux_raid_member", raid, hasRAIDAtEnd},
	} {
		is, err := k.find(p)
		if err != nil {
			return p, err
		}
		if is {
			p.Kind, p.Reason, p.Content = k.kind, k.reason, nil
			return p, nil
		}
	}
	p.Reason, p.Content = "it has no file system or table that is known: it is empty, encrypted, or an application writes to it directly", nil
	return p, nil
}

// has reports whether bytes are at a place. What is past the end of the part is not.
func has(p Part, at int64, magic string) (bool, error) {
	b := make([]byte, len(magic))
	err := read(p.Content, p.Size, b, at)
	if errors.Is(err, ErrDamaged) {
		return false, nil
	}
	return string(b) == magic, err
}

// hasZFS looks for the uberblocks of the first label.
func hasZFS(p Part) (bool, error) {
	for at := int64(128 << 10); at < 256<<10; at += 8 << 10 {
		is, err := has(p, at, "\x0c\xb1\xba\x00\x00\x00\x00\x00")
		if is || err != nil {
			return is, err
		}
	}
	return false, nil
}

// hasRAIDAtEnd looks for the superblocks of md that are at the end of a member.
func hasRAIDAtEnd(p Part) (bool, error) {
	for _, at := range []int64{(p.Size/sector - 16) &^ 7 * sector, p.Size&^(64<<10-1) - 64<<10} {
		is, err := has(p, at, string(binary.LittleEndian.AppendUint32(nil, 0xa92b4efc)))
		if is || err != nil {
			return is, err
		}
	}
	return false, nil
}
