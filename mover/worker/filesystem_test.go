package worker

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFilesystemOf(t *testing.T) {
	volume := func(offset int, magic string) *bytes.Reader {
		data := make([]byte, 128<<10)
		copy(data[offset:], magic)
		return bytes.NewReader(data)
	}
	for _, c := range []struct {
		volume *bytes.Reader
		want   string
	}{
		{volume(1080, "\x53\xef"), "ext4"},
		{volume(0, "XFSB"), "xfs"},
		{volume(65600, "_BHRfS_M"), "btrfs"},
		{volume(0, "LUKS"), ""},
		{bytes.NewReader(make([]byte, 512)), ""},
	} {
		require.Equal(t, c.want, filesystemOf(c.volume))
	}
}
