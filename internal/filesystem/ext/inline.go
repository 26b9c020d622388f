package ext

import "fmt"

// inlineData returns the content of a file that is in its inode: 60 bytes, and the rest in the attribute system.data.
func (f *FileSystem) inlineData(in *inode) ([]byte, error) {
	content := append([]byte(nil), in.blockArea()...)
	more, err := f.inlineAttribute(in)
	if err != nil {
		return nil, err
	}
	content = append(content, more...)
	if in.size > int64(len(content)) {
		return nil, damaged("inode %d has %d of %d bytes", in.number, len(content), in.size)
	}
	return content[:in.size], nil
}

// inlineDirectory returns the two parts of a directory that is in its inode. Its first four bytes are the inode of
// its parent.
func (f *FileSystem) inlineDirectory(in *inode) ([][]byte, error) {
	more, err := f.inlineAttribute(in)
	return [][]byte{in.blockArea()[4:], more}, err
}

func (f *FileSystem) inlineAttribute(in *inode) ([]byte, error) {
	attributes, err := f.inodeAttributes(in)
	if err != nil {
		return nil, fmt.Errorf("read inline data of inode %d: %w", in.number, err)
	}
	for _, a := range attributes {
		if a.index == indexSystem && a.name == "data" {
			return a.value, nil
		}
	}
	return nil, nil
}
