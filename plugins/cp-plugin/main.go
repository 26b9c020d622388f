// Command cp-plugin copies one file. Velero runs a plugin image as an init container, which
// has to copy the plugin into the shared volume. The image has no shell, so this is its
// entrypoint:
//
//	cp-plugin /plugins/velero-plugin-blockmover /target/velero-plugin-blockmover
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cp-plugin SOURCE TARGET")
		os.Exit(2)
	}
	if err := copyFile(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "cp-plugin: %v\n", err)
		os.Exit(1)
	}
}

// copyFile copies a file and its permissions. The target gets its name only when it is
// complete, so a restarted container never leaves a part of a plugin.
func copyFile(source, target string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was only read
	info, err := in.Stat()
	if err != nil {
		return err
	}
	partial := target + ".partial"
	out, err := os.OpenFile(partial, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(partial, target)
}
