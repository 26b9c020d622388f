package ext

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// Tags of fast commits.
const (
	fastAddRange = 1
	fastDelRange = 2
	fastCreate   = 3
	fastLink     = 4
	fastUnlink   = 5
	fastInodeTag = 6
	fastPad      = 7
	fastTail     = 8
	fastHead     = 9
)

const (
	fastTagSize = 4
	// maxFastBytes bounds what is read of fast commits. mkfs reserves 1 to 16 MiB.
	maxFastBytes = 64 << 20
	// maxFastInodes bounds the bytes of the inodes that they change.
	maxFastInodes = 64 << 20
	// maxFastTags bounds the memory for what fast commits change.
	maxFastTags = 1 << 20
)

// fastCommits are the changes since the last transaction. They name what changed in files and directories,
// not blocks.
type fastCommits struct {
	inodes      map[uint32]*fastInode
	directories map[uint32]*fastDirectory
	bytes       int64 // of inodes
}

type fastInode struct {
	// raw is the inode, or nil if only its mappings changed.
	raw     []byte
	changes []run // of mappings, in the order in which they were made
	patches []run // what they come to
}

// fastDirectory has the names of a directory that fast commits touch, with their inodes. 0 is a name that is gone.
type fastDirectory struct {
	names map[string]uint32
	// created: no block of the directory was written yet.
	created bool
}

// fastRecord is one tag with its value.
type fastRecord struct {
	kind  uint16
	value []byte
}

// replayFast applies the fast commits that follow the last transaction. sequence is the number of the next.
func (f *FileSystem) replayFast(l *log, sequence uint32) error {
	records, commits, err := l.fastRecords(sequence)
	if err == nil && commits > 0 {
		f.fast = &fastCommits{inodes: map[uint32]*fastInode{}, directories: map[uint32]*fastDirectory{}}
		err = f.applyFast(records)
	}
	switch {
	case errors.Is(err, filesystem.ErrDamaged) || errors.Is(err, filesystem.ErrUnsupported):
		f.fast = &fastCommits{}
		f.note("The fast commits in the journal cannot be replayed: %v. The changes of the last seconds before the backup are not shown.", err)
		return nil
	case err != nil:
		return err
	case commits > 0:
		f.note("%d fast commits of the journal were replayed. Directories that they change are shown with their earlier times and links.", commits)
	}
	return nil
}

// fastRecords returns the records up to the last complete fast commit, and how many fast commits there are.
func (l *log) fastRecords(sequence uint32) (records []fastRecord, commits int, err error) {
	if int64(l.fastEnd-l.last) > maxFastBytes/l.dev.blockSize {
		return nil, 0, unsupported("a journal with %d blocks for fast commits", l.fastEnd-l.last)
	}
	var pending []fastRecord
	crc := uint32(0)
	first := l.last + 1 // the kernel leaves one block out
	for position := first; position < l.fastEnd; position++ {
		block, err := l.block(position)
		if err != nil {
			return nil, 0, err
		}
		if position == first && le.Uint16(block) != fastHead {
			return nil, 0, nil
		}
		for off := 0; off+fastTagSize <= len(block); {
			r := fastRecord{kind: le.Uint16(block[off:])}
			length := int(le.Uint16(block[off+2:]))
			if length > len(block)-off-fastTagSize || !l.fastLength(r.kind, length) {
				return records, commits, nil
			}
			r.value = block[off+fastTagSize : off+fastTagSize+length]
			switch r.kind {
			case fastHead:
				if features := le.Uint32(r.value); features != 0 {
					return nil, 0, unsupported("fast commits with features 0x%x", features)
				}
				if le.Uint32(r.value[4:]) != sequence {
					return records, commits, nil
				}
			case fastTail:
				crc = crc32c(crc, block[off:off+fastTagSize+4])
				if le.Uint32(r.value) != sequence || le.Uint32(r.value[4:]) != crc {
					return records, commits, nil
				}
				records, pending, crc = append(records, pending...), pending[:0], 0
				commits++
				off += fastTagSize + length
				continue
			default:
				if pending = append(pending, r); len(records)+len(pending) > maxFastTags {
					return nil, 0, unsupported("fast commits with more than %d changes", maxFastTags)
				}
			}
			crc = crc32c(crc, block[off:off+fastTagSize+length])
			off += fastTagSize + length
		}
	}
	return records, commits, nil
}

// fastLength reports whether a tag is known and its value can be that long.
func (l *log) fastLength(kind uint16, length int) bool {
	switch kind {
	case fastAddRange:
		return length == 16
	case fastDelRange:
		return length == 12
	case fastCreate, fastLink, fastUnlink:
		return length > 8 && length <= 8+255
	case fastInodeTag:
		return length >= 4+oldInodeSize
	case fastTail, fastHead:
		return length >= 8
	case fastPad:
		return true
	}
	return false
}

func (f *FileSystem) applyFast(records []fastRecord) error {
	if err := f.findFastNames(records); err != nil {
		return err
	}
	for _, r := range records {
		var err error
		switch r.kind {
		case fastInodeTag:
			err = f.fastReplace(le.Uint32(r.value), r.value[4:])
		case fastAddRange:
			err = f.fastAdd(r.value)
		case fastDelRange:
			first, length := uint64(le.Uint32(r.value[4:])), uint64(le.Uint32(r.value[8:]))
			err = f.fastMap(le.Uint32(r.value), run{logical: first, length: length})
		case fastCreate, fastLink, fastUnlink:
			err = f.fastName(r.kind, le.Uint32(r.value), le.Uint32(r.value[4:]), string(r.value[8:]))
		}
		if err != nil {
			return err
		}
	}
	for _, in := range f.fast.inodes {
		in.patches = flatten(in.changes)
		in.changes = nil
	}
	return nil
}

// findFastNames looks the names that records have up in their directories, reading each directory once.
func (f *FileSystem) findFastNames(records []fastRecord) error {
	for _, r := range records {
		if r.kind != fastCreate && r.kind != fastLink && r.kind != fastUnlink {
			continue
		}
		number := le.Uint32(r.value)
		if f.fast.directories[number] == nil {
			f.fast.directories[number] = &fastDirectory{names: map[string]uint32{}}
		}
		f.fast.directories[number].names[string(r.value[8:])] = 0
	}
	for number, directory := range f.fast.directories {
		in, err := f.readInode(number)
		if errors.Is(err, fs.ErrNotExist) || err == nil && in.kind() != modeDir {
			continue
		}
		if err != nil {
			return err
		}
		for e, err := range f.entries(in) {
			if err != nil {
				return err
			}
			if _, found := directory.names[e.name]; found {
				directory.names[e.name] = e.inode
			}
		}
	}
	return nil
}

// fastInode returns an inode that may be changed, with zeros if it was never used.
func (f *FileSystem) fastInode(number uint32) (*fastInode, error) {
	in := f.fast.inodes[number]
	if in == nil {
		in = &fastInode{}
		f.fast.inodes[number] = in
	}
	if in.raw != nil {
		return in, nil
	}
	if f.fast.bytes += f.super.inodeSize; f.fast.bytes > maxFastInodes {
		return nil, unsupported("fast commits that change inodes of more than %d bytes", maxFastInodes)
	}
	raw, err := f.rawInode(number)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	in.raw = make([]byte, f.super.inodeSize)
	copy(in.raw, raw)
	return in, nil
}

// fastReplace replaces an inode, but for its mappings.
func (f *FileSystem) fastReplace(number uint32, raw []byte) error {
	in, err := f.fastInode(number)
	if err != nil {
		return err
	}
	if len(raw) > len(in.raw) {
		return damaged("a fast commit has %d bytes of inode %d", len(raw), number)
	}
	copy(in.raw[:blockArea], raw)
	copy(in.raw[blockArea+blockAreaSize:], raw[blockArea+blockAreaSize:])
	area, flags := in.raw[blockArea:blockArea+blockAreaSize], le.Uint32(raw[0x20:])
	kind := le.Uint16(raw) & modeType
	switch {
	case flags&flagExtents != 0:
		if le.Uint16(area) != extentMagic {
			clear(area)
			le.PutUint16(area, extentMagic)
			le.PutUint16(area[4:], (blockAreaSize-extentHeaderSize)/extentEntrySize)
		}
	case flags&flagInlineData != 0 || kind != modeRegular && kind != modeDir:
		copy(area, raw[blockArea:])
	}
	return nil
}

func (f *FileSystem) fastAdd(value []byte) error {
	r := extentNode{entries: value[4:]}.extent(0)
	if err := f.checkBlocks(r.physical, r.length); err != nil {
		return fmt.Errorf("add blocks to inode %d: %w", le.Uint32(value), err)
	}
	return f.fastMap(le.Uint32(value), r)
}

// fastMap changes where a file has its blocks. What has no inode is left alone, as the kernel does.
func (f *FileSystem) fastMap(number uint32, r run) error {
	if r.length == 0 {
		return damaged("a fast commit changes no block of inode %d", number)
	}
	in, err := f.readInode(number)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !in.is(flagExtents) {
		return unsupported("fast commits of inode %d, which has no extents", number)
	}
	if f.fast.inodes[number] == nil {
		f.fast.inodes[number] = &fastInode{}
	}
	f.fast.inodes[number].changes = append(f.fast.inodes[number].changes, r)
	return nil
}

// fastName adds or removes a name. A name that exists stays. One that belongs to another file is not removed, and counts for no link:
// here the kernel counts, and may lose the file.
func (f *FileSystem) fastName(kind uint16, parent, number uint32, name string) error {
	if number == 0 || number > f.super.inodes || checkName(name) != nil {
		return damaged("a fast commit names inode %d of %d %q", number, f.super.inodes, name)
	}
	names := f.fast.directories[parent].names
	old := names[name]
	if kind == fastUnlink {
		if old == number {
			names[name] = 0
			return f.fastLinks(number, -1)
		}
		return nil
	}
	if kind == fastCreate {
		if err := f.fastCreated(number); err != nil {
			return err
		}
	}
	if old != 0 {
		return nil
	}
	names[name] = number
	if kind == fastCreate {
		return nil // its inode came before, with its links
	}
	return f.fastLinks(number, 1)
}

// fastCreated notes that a directory is new: no block of it was written.
func (f *FileSystem) fastCreated(number uint32) error {
	in, err := f.fastInode(number)
	if err != nil {
		return err
	}
	if le.Uint16(in.raw)&modeType != modeDir {
		return nil
	}
	directory := f.fast.directories[number]
	if directory == nil {
		directory = &fastDirectory{names: map[string]uint32{}}
		f.fast.directories[number] = directory
	}
	directory.created = true
	clear(directory.names)
	return nil
}

// fastLinks counts the names of a file. With the last one, its blocks and its inode are free.
func (f *FileSystem) fastLinks(number uint32, change int) error {
	in, err := f.fastInode(number)
	if err != nil {
		return err
	}
	links := int(le.Uint16(in.raw[0x1a:])) + change
	if links > 0 {
		le.PutUint16(in.raw[0x1a:], uint16(links)) // of 65535 at most: a later inode record has the right number
		return nil
	}
	clear(in.raw)
	in.changes = nil
	return nil
}
