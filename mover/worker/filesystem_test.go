package worker

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/device/devicetest"
	"github.com/blockmover/blockmover/internal/fault"
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

func TestCheckFilesystem(t *testing.T) {
	volume := func(change func(data []byte)) *device.Memory {
		data := make([]byte, 1<<20)
		change(data)
		return device.NewMemory(data, 512)
	}
	for name, tc := range map[string]struct {
		dev  *device.Memory
		want string
		err  string
	}{
		"none named":     {volume(func(d []byte) { d[0] = 1 }), "", ""},
		"an unknown one": {volume(func(d []byte) { d[0] = 1 }), "zfs", ""},
		"never mounted":  {volume(func([]byte) {}), "ext4", ""},
		"as named":       {volume(func(d []byte) { copy(d, "XFSB") }), "xfs", ""},
		"another one":    {volume(func(d []byte) { copy(d, "XFSB") }), "ext4", ""},
		"encrypted":      {volume(func(d []byte) { copy(d, "LUKS\xba\xbe") }), "ext4", ""},
		"an archive":     {volume(func(d []byte) { copy(d, "\x1f\x8b") }), "ext4", "the device has no file system, and the PersistentVolume says that it has ext4"},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkFilesystem(tc.dev, tc.want)
			if tc.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.err)
			require.Equal(t, fault.Final, fault.Of(err))
		})
	}
	broken := devicetest.NewFaulty(volume(func([]byte) {}))
	broken.Fail(devicetest.Read, 0, errors.New("input/output error"))
	require.ErrorContains(t, checkFilesystem(broken, "ext4"), "input/output error; the driver may not be able")
}
