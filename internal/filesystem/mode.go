package filesystem

import "io/fs"

// types are the types of i_mode.
var types = map[uint16]fs.FileMode{
	0o010000: fs.ModeNamedPipe, 0o020000: fs.ModeDevice | fs.ModeCharDevice, 0o040000: fs.ModeDir, 0o060000: fs.ModeDevice,
	0o100000: 0, 0o120000: fs.ModeSymlink, 0o140000: fs.ModeSocket,
}

// bits are what i_mode has between the type and the permissions.
var bits = map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky}

// ModeOf converts i_mode.
func ModeOf(unix uint16) fs.FileMode {
	mode, known := types[unix&0o170000]
	if !known {
		mode = fs.ModeIrregular
	}
	mode |= fs.FileMode(unix & 0o777)
	for bit, m := range bits {
		if unix&bit != 0 {
			mode |= m
		}
	}
	return mode
}

// UnixMode returns the twelve bits of i_mode below the type.
func UnixMode(mode fs.FileMode) uint32 {
	unix := uint32(mode.Perm())
	for bit, m := range bits {
		if mode&m != 0 {
			unix |= uint32(bit)
		}
	}
	return unix
}
