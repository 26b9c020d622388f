package ext

import (
	"fmt"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	attributeMagic       = 0xea020000
	attributeHeaderSize  = 4  // in an inode
	attributeBlockHeader = 32 // in a block
	attributeEntrySize   = 16 // without the name
	// maxAttribute is the longest value that the kernel takes (XATTR_SIZE_MAX).
	maxAttribute = 64 << 10
	// maxAttributes bounds the memory for the attributes of one file. The kernel lists 64 KiB of names at most.
	maxAttributes = 32 << 20
)

// Prefixes of names.
const (
	indexACLAccess  = 2
	indexACLDefault = 3
	indexSystem     = 7
)

// attributePrefixes has the prefixes of names that the kernel shows. ACLs have no more name than this.
var attributePrefixes = map[uint8]string{
	1:               "user.",
	indexACLAccess:  "system.posix_acl_access",
	indexACLDefault: "system.posix_acl_default",
	4:               "trusted.",
	6:               "security.",
	10:              "gnu.",
}

// attribute is an extended attribute as it is on the device.
type attribute struct {
	index uint8
	name  string
	value []byte
	// inode has the value if it is not 0.
	inode uint32
	size  uint32
}

// Attributes implements filesystem.FileSystem.
func (f *FileSystem) Attributes(id filesystem.ID) (map[string][]byte, error) {
	in, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	attributes, err := f.inodeAttributes(in)
	if err == nil {
		var more []attribute
		more, err = f.blockAttributes(in)
		attributes = append(attributes, more...)
	}
	if err != nil {
		return nil, fmt.Errorf("read attributes of inode %d: %w", id, err)
	}
	shown, total := map[string][]byte{}, 0
	for _, a := range attributes {
		prefix, found := attributePrefixes[a.index]
		if !found {
			continue
		}
		name := prefix + a.name
		if _, found := shown[name]; found {
			continue // what is in the inode has precedence
		}
		value, err := f.attributeValue(in, a)
		if err != nil {
			return nil, fmt.Errorf("read attribute %q of inode %d: %w", name, id, err)
		}
		if total += len(name) + len(value); total > maxAttributes {
			return nil, unsupported("the attributes of inode %d have more than %d bytes", id, maxAttributes)
		}
		shown[name] = value
	}
	return shown, nil
}

// inodeAttributes returns the attributes behind the fields of an inode.
func (f *FileSystem) inodeAttributes(in *inode) ([]attribute, error) {
	start := oldInodeSize + in.extra()
	if len(in.raw) == oldInodeSize || in.extra() == 0 || start+attributeHeaderSize > len(in.raw) || in.u32(start) != attributeMagic {
		return nil, nil
	}
	area := in.raw[start+attributeHeaderSize:]
	return parseAttributes(area, area)
}

// blockAttributes returns the attributes in the block that an inode has for them.
func (f *FileSystem) blockAttributes(in *inode) ([]attribute, error) {
	number := uint64(in.u32(0x68))
	if f.super.incompat&incompat64bit != 0 {
		number |= uint64(in.u16(0x76)) << 32
	}
	if number == 0 {
		return nil, nil
	}
	if err := f.checkBlocks(number, 1); err != nil {
		return nil, err
	}
	block, err := f.dev.block(number)
	if err != nil {
		return nil, err
	}
	if le.Uint32(block) != attributeMagic || le.Uint32(block[8:]) != 1 {
		return nil, damaged("block %d has no attributes", number)
	}
	if f.super.checksums() {
		var at [8]byte
		le.PutUint64(at[:], number)
		if crc32cWithout(crc32c(f.super.seed, at[:]), block, 0x10, 4) != le.Uint32(block[0x10:]) {
			return nil, damaged("the attributes in block %d fail their checksum", number)
		}
	}
	return parseAttributes(block[attributeBlockHeader:], block)
}

// parseAttributes reads entries up to four zeros. Offsets of values are relative to values.
func parseAttributes(entries, values []byte) ([]attribute, error) {
	var attributes []attribute
	for {
		if len(entries) < 4 {
			return nil, damaged("the attributes do not end")
		}
		if le.Uint32(entries) == 0 {
			return attributes, nil
		}
		nameLength := int(entries[0])
		if len(entries) < attributeEntrySize+nameLength {
			return nil, damaged("an attribute is cut off")
		}
		a := attribute{
			index: entries[1],
			name:  string(entries[attributeEntrySize : attributeEntrySize+nameLength]),
			inode: le.Uint32(entries[4:]),
			size:  le.Uint32(entries[8:]),
		}
		if strings.ContainsRune(a.name, 0) {
			return nil, damaged("an attribute has the name %q", a.name)
		}
		if a.inode == 0 {
			off := int64(le.Uint16(entries[2:]))
			if off+int64(a.size) > int64(len(values)) {
				return nil, damaged("the value of attribute %q is %d bytes at %d of %d", a.name, a.size, off, len(values))
			}
			a.value = values[off : off+int64(a.size)]
		}
		attributes = append(attributes, a)
		entries = entries[min((attributeEntrySize+nameLength+3)&^3, len(entries)):]
	}
}

// attributeValue returns the value as the kernel shows it.
func (f *FileSystem) attributeValue(in *inode, a attribute) ([]byte, error) {
	value := a.value
	if a.inode != 0 {
		var err error
		if value, err = f.attributeInode(in, a); err != nil {
			return nil, err
		}
	}
	if a.index == indexACLAccess || a.index == indexACLDefault {
		return convertACL(value)
	}
	return append([]byte{}, value...), nil
}

// attributeInode reads a value that is the content of an inode. Its hash is where other inodes have the access time.
func (f *FileSystem) attributeInode(in *inode, a attribute) ([]byte, error) {
	holder, err := f.readInode(a.inode)
	if err != nil {
		return nil, err
	}
	switch {
	case !holder.is(flagEAInode) || holder.kind() != modeRegular:
		return nil, damaged("inode %d is no value of an attribute", a.inode)
	case holder.size != int64(a.size) || a.size > maxAttribute:
		return nil, damaged("a value of %d bytes is in inode %d of %d bytes", a.size, a.inode, holder.size)
	}
	value := make([]byte, a.size)
	if len(value) > 0 {
		if _, err := f.content(holder).ReadAt(value, 0); err != nil {
			return nil, err
		}
	}
	// Lustre's inodes have no hash, but refer to the file: i_mtime is its inode, and both have one generation.
	lustre := holder.u32(0x10) == in.number && holder.u32(0x64) == in.u32(0x64)
	if !lustre && crc32c(f.super.seed, value) != holder.u32(0x8) {
		return nil, damaged("the value in inode %d fails its checksum", a.inode)
	}
	return value, nil
}

// convertACL converts an access control list from version 1, which has IDs only where they mean something, to the
// kernel's version 2 (linux/posix_acl_xattr.h).
func convertACL(disk []byte) ([]byte, error) {
	const user, group = 0x2, 0x8
	if len(disk) < 4 || le.Uint32(disk) != 1 {
		return nil, damaged("an access control list has no version")
	}
	acl := le.AppendUint32(nil, 2)
	for disk = disk[4:]; len(disk) > 0; {
		if len(disk) < 4 {
			return nil, damaged("an access control list is cut off")
		}
		tag, id := le.Uint16(disk), ^uint32(0)
		acl = append(acl, disk[:4]...)
		disk = disk[4:]
		if tag == user || tag == group {
			if len(disk) < 4 {
				return nil, damaged("an access control list is cut off")
			}
			id, disk = le.Uint32(disk), disk[4:]
		}
		acl = le.AppendUint32(acl, id)
	}
	return acl, nil
}
