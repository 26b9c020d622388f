package xfs

import (
	"encoding/binary"
	"fmt"
)

// Flags of an attribute.
const (
	attributeLocal      = 1 << 0 // the value is in the leaf
	attributeRoot       = 1 << 1 // trusted.
	attributeSecure     = 1 << 2 // security.
	attributeParent     = 1 << 3 // a parent pointer, which the kernel hides
	attributeIncomplete = 1 << 7 // the value was not written yet

	// maxAttributes bounds the names and values of one file. The kernel lists at most 64 KiB of names.
	maxAttributes = 16 << 20
	maxValue      = 64 << 10 // XFS_XATTR_SIZE_MAX
)

// attributes collects the extended attributes of a file.
type attributes struct {
	values map[string][]byte
	bytes  int
}

// add adds an attribute with the names that the kernel shows to root. Value is only called if they are shown.
func (a *attributes) add(flags byte, name []byte, value func() ([]byte, error)) error {
	if flags&(attributeParent|attributeIncomplete) != 0 {
		return nil
	}
	if len(name) == 0 {
		return damaged("an extended attribute has no name")
	}
	v, err := value()
	if err != nil {
		return fmt.Errorf("extended attribute %q: %w", name, err)
	}
	if a.bytes += len(name) + len(v); a.bytes > maxAttributes {
		return unsupported("more than %d MiB of extended attributes", maxAttributes>>20)
	}
	prefix := "user."
	switch {
	case flags&attributeRoot != 0:
		prefix = "trusted."
		if shown, is := aclNames[string(name)]; is {
			if a.values[shown], err = posixACL(v); err != nil {
				return fmt.Errorf("%s: %w", shown, err)
			}
		}
	case flags&attributeSecure != 0:
		prefix = "security."
	}
	a.values[prefix+string(name)] = v
	return nil
}

// aclNames are the attributes that hold access control lists. The kernel shows them under both names.
var aclNames = map[string]string{
	"SGI_ACL_FILE":    "system.posix_acl_access",
	"SGI_ACL_DEFAULT": "system.posix_acl_default",
}

// posixACL turns an access control list into the kernel's form (linux/posix_acl_xattr.h): the number of entries, then
// tag (4 bytes), ID (4), permissions (2), 2 unused; becomes version 2, then tag (2), permissions (2), ID (4), little-endian.
func posixACL(b []byte) ([]byte, error) {
	be, le := binary.BigEndian, binary.LittleEndian
	const entry, user, group, none = 12, 2, 8, 1<<32 - 1
	if len(b) < 4 || uint64(len(b)-4) != entry*uint64(be.Uint32(b)) {
		return nil, damaged("an access control list has %d bytes", len(b))
	}
	acl := []byte{2, 0, 0, 0}
	for b = b[4:]; len(b) > 0; b = b[entry:] {
		tag, id := be.Uint32(b), be.Uint32(b[4:])
		if tag != user && tag != group {
			id = none
		}
		acl = le.AppendUint16(acl, uint16(tag))
		acl = le.AppendUint16(acl, be.Uint16(b[8:]))
		acl = le.AppendUint32(acl, id)
	}
	return acl, nil
}

// attributes returns the extended attributes of a file.
func (f *FileSystem) attributes(n *inode) (map[string][]byte, error) {
	a := &attributes{values: map[string][]byte{}}
	var err error
	switch {
	case len(n.attr.b) == 0:
	case n.attr.format == formatLocal:
		err = a.local(n.attr.b)
	case n.attr.format == formatExtents && n.attr.extents == 0:
	default:
		err = f.attributeTree(n, a)
	}
	return a.values, err
}

// local reads the attributes that are in the inode.
func (a *attributes) local(b []byte) error {
	if len(b) < 4 {
		return damaged("its extended attributes have %d bytes", len(b))
	}
	size, count := int(binary.BigEndian.Uint16(b)), int(b[2])
	if size < 4 || size > len(b) {
		return damaged("its extended attributes have %d bytes, of which %d are in the inode", size, len(b))
	}
	for b = b[4:size]; count > 0; count-- {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return damaged("an extended attribute runs over the end")
		}
		end := 3 + int(b[0]) + int(b[1])
		name, value := b[3:3+int(b[0])], b[3+int(b[0]):end]
		if err := a.add(b[2], name, func() ([]byte, error) { return append([]byte{}, value...), nil }); err != nil {
			return err
		}
		b = b[end:]
	}
	return nil
}
