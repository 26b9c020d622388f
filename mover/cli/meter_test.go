package cli

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMeterStatus(t *testing.T) {
	const gib = 1 << 30
	for want, s := range map[string]meterStatus{
		"backup: starting": status("backup", 0, 0, time.Second),
		"[                    ] backup: 0 B of 4.0 GiB (0 %), 0 B/s":                     status("backup", 0, 4*gib, time.Second),
		"[=====               ] backup: 1.0 GiB of 4.0 GiB (25 %), 512 MiB/s, 6s left":   status("backup", gib, 4*gib, 2*time.Second),
		"[====================] restore: 4.0 GiB of 4.0 GiB (100 %), 1.0 GiB/s, 0s left": status("restore", 5*gib, 4*gib, 4*time.Second),
	} {
		require.Equal(t, want, s.bar()+s.String())
	}
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{
		-1: "0 B", 0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 200 << 10: "200 KiB",
		64 << 40: "64 TiB", 1 << 50: "1.0 PiB",
	} {
		require.Equal(t, want, formatBytes(n), n)
	}
}

func TestOneLine(t *testing.T) {
	require.Equal(t, "a; b", OneLine(errors.Join(errors.New("a"), errors.New("b"))))
	require.Equal(t, `volume g\x1b[2J/ü is "on" \another disk`, OneLine(errors.New("volume g\x1b[2J/ü is \"on\" \\another disk")), "a terminal obeys nothing that an image has made up")
}
