package ext

import (
	"fmt"
	"iter"
	"strings"

	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	entryHeaderSize = 8
	// leafTailSize is the size of the entry of no file at the end of a block that has its checksum.
	leafTailSize = 12
	leafTailType = 0xde
)

// entry is one name of a directory.
type entry struct {
	name  string
	inode uint32
}

// entries yields the names of a directory as they are on the device, without "." and "..". What is damaged is left out;
// its first error comes at the end.
func (f *FileSystem) entries(in *inode) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		var first error
		stopped := false
		visit := func(raw []byte) {
			err := f.parseEntries(raw, func(e entry) bool {
				stopped = !yield(e, nil)
				return !stopped
			})
			if err != nil && first == nil {
				first = fmt.Errorf("read directory %d: %w", in.number, err)
			}
		}
		if in.is(flagInlineData) {
			parts, err := f.inlineDirectory(in)
			for _, part := range parts {
				if !stopped {
					visit(part)
				}
			}
			if first == nil {
				first = err
			}
		} else {
			for block, err := range f.directoryBlocks(in) {
				if err == nil {
					visit(block)
				} else if first == nil {
					first = fmt.Errorf("read directory %d: %w", in.number, err)
				}
				if stopped {
					return
				}
			}
		}
		if first != nil && !stopped {
			yield(entry{}, first)
		}
	}
}

// directoryBlocks yields the entries of the blocks of a directory that have any, and goes on after a damaged block.
func (f *FileSystem) directoryBlocks(in *inode) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		blocks := (uint64(in.size) + uint64(f.super.blockSize) - 1) / uint64(f.super.blockSize)
		found := uint64(0)
		for r, err := range f.runs(in, blocks) {
			if err != nil {
				yield(nil, err)
				return
			}
			if r.state != data {
				continue
			}
			found += r.length
			for i := range r.length {
				block, err := f.dev.block(r.physical + i)
				if err == nil {
					block, err = f.checkDirectoryBlock(in, block)
				}
				if !yield(block, err) {
					return
				}
			}
		}
		if found < blocks {
			yield(nil, damaged("%d of %d blocks are missing", blocks-found, blocks))
		}
	}
}

// checkDirectoryBlock checks a block against its checksum, and returns the part of it that has entries. The nodes of
// a tree of hashes look like a block with one unused entry, and their root like one with "." and ".." alone.
func (f *FileSystem) checkDirectoryBlock(in *inode, block []byte) ([]byte, error) {
	if !f.super.checksums() {
		return block, nil
	}
	if in.is(flagIndex) {
		if counts := hashNode(block); counts != 0 {
			if !hashNodeChecksum(in.seed, block, counts) {
				return nil, damaged("a node of hashes fails its checksum")
			}
			return block, nil
		}
	}
	entries, tail := block[:len(block)-leafTailSize], block[len(block)-leafTailSize:]
	if le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != leafTailSize || tail[6] != 0 || tail[7] != leafTailType {
		return nil, damaged("a block of names has no checksum")
	}
	if crc32c(in.seed, entries) != le.Uint32(tail[8:]) {
		return nil, damaged("a block of names fails its checksum")
	}
	return entries, nil
}

// hashNode returns where a node of a tree of hashes has its counts, and 0 for other blocks.
func hashNode(block []byte) int {
	switch recordLength(block[4:], len(block)) {
	case len(block):
		if le.Uint32(block) == 0 {
			return 8
		}
	case 12:
		// The root: ".", "..", then four zeros and the size of what describes the hash.
		if recordLength(block[16:], len(block)) == len(block)-12 && le.Uint32(block[24:]) == 0 && block[29] == 8 {
			return 32
		}
	}
	return 0
}

// hashNodeChecksum checks the checksum behind the room for hashes.
func hashNodeChecksum(seed uint32, block []byte, counts int) bool {
	limit, count := int(le.Uint16(block[counts:])), int(le.Uint16(block[counts+2:]))
	tail := counts + limit*8
	if count > limit || tail+8 > len(block) {
		return false
	}
	crc := crc32c(seed, block[:counts+count*8])
	return crc32cWithout(crc, block[tail:tail+8], 4, 4) == le.Uint32(block[tail+4:])
}

// recordLength reads the length of an entry. In blocks of 64 KiB it has more than 16 bits.
func recordLength(b []byte, blockSize int) int {
	n := int(le.Uint16(b))
	if blockSize < 1<<16 {
		return n
	}
	if n == 0 || n == 1<<16-1 {
		return blockSize
	}
	return n&^3 | n&3<<16
}

// parseEntries calls yield for the entries of (a part of) a block until it returns false.
func (f *FileSystem) parseEntries(raw []byte, yield func(entry) bool) error {
	for off := 0; off < len(raw); {
		b := raw[off:]
		if len(b) < entryHeaderSize {
			return damaged("an entry of a directory is cut off")
		}
		number, length, nameLength := le.Uint32(b), recordLength(b[4:], int(f.super.blockSize)), int(b[6])
		switch {
		case length < entryHeaderSize+4 || length%4 != 0 || length < entryHeaderSize+nameLength:
			return damaged("an entry of a directory has %d bytes and a name of %d", length, nameLength)
		case length > len(b):
			return damaged("an entry of %d bytes is longer than its block", length)
		case number > f.super.inodes:
			return damaged("an entry names inode %d of %d", number, f.super.inodes)
		}
		off += length
		name := string(b[entryHeaderSize : entryHeaderSize+nameLength])
		if number == 0 || name == "." || name == ".." {
			continue
		}
		if err := checkName(name); err != nil {
			return err
		}
		if !yield(entry{name: name, inode: number}) {
			return nil
		}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return damaged("a directory has the name %q", name)
	}
	return nil
}

// ReadDir implements filesystem.FileSystem. What is damaged in a directory is left out; its first error comes at the end.
func (f *FileSystem) ReadDir(id filesystem.ID) iter.Seq2[filesystem.Entry, error] {
	return func(yield func(filesystem.Entry, error) bool) {
		in, err := f.inode(id)
		switch {
		case err != nil:
		case in.kind() != modeDir:
			err = fmt.Errorf("inode %d is no directory", id)
		case in.is(flagEncrypt):
			err = unsupported("the directory of inode %d is encrypted", id)
		}
		if err != nil {
			yield(filesystem.Entry{}, err)
			return
		}
		for e, err := range f.fast.entries(in, f.entries(in)) {
			if !yield(filesystem.Entry{Name: e.name, ID: filesystem.ID(e.inode)}, err) || err != nil {
				return
			}
		}
	}
}
