package mount

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	point, err := parse(`36 35 7:300 /a\040dir /mnt/b\134c rw,noatime master:1 shared:2 - xfs /dev/loop300 rw,discard` + "\n")
	want := Point{Target: `/mnt/b\c`, Root: "/a dir", Type: "xfs", Device: unix.Mkdev(7, 300)}
	if err != nil || point != want {
		t.Errorf("got %+v, %v, want %+v", point, err, want)
	}
	for _, line := range []string{"", "36 35 7:0 / /mnt rw", "36 35 seven:0 / /mnt rw - xfs x rw", "36 35 7 / /mnt rw - xfs x rw"} {
		if _, err := parse(line); err == nil {
			t.Errorf("no error for %q", line)
		}
	}
}
