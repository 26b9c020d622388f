package main

import (
	"context"
	"os"
)

// Velero makes repositories with the first hash function, and from its next release on with
// the second.
const (
	hashBLAKE2b = "BLAKE2B-256-128"
	hashHMAC    = "HMAC-SHA256-128"
)

// The steps of the repositories with HMAC-SHA256.
const (
	stepHMACFull   = "hmac-sha256: full"
	stepHMACDevice = "hmac-sha256: kopia, device"
	stepHMACFile   = "hmac-sha256: kopia, file"
)

// createWith makes a new repository with a hash function.
func (o ours) createWith(ctx context.Context, hash string) error {
	if err := os.RemoveAll(o.repo); err != nil {
		return err
	}
	_, _, err := o.child("repo", "create", "--block-hash", hash).run(ctx)
	return err
}

// createWith makes a new repository with a hash function, chunks of 1 MiB, and the encryption
// of Velero's repositories. There is no compression unless a policy turns it on.
func (k stock) createWith(ctx context.Context, hash string) error {
	if err := os.RemoveAll(k.dir); err != nil {
		return err
	}
	_, _, err := k.child("repository", "create", "filesystem", "--path", k.repo(), "--object-splitter", "FIXED-1M",
		"--block-hash", hash, "--encryption", "AES256-GCM-HMAC-SHA256").run(ctx)
	return err
}

// hmac backs the volume up into repositories with HMAC-SHA256. Both tools read all of
// the volume, and neither compresses it.
func (b *bench) hmac(ctx context.Context, allocated int64) error {
	o := ours{binary: b.binary, repo: b.path("ours")}
	if err := o.createWith(ctx, hashHMAC); err != nil {
		return err
	}
	s, _, err := o.backup(ctx, b.volume.path(), "Full", "--compression", "none")
	if err != nil {
		return err
	}
	b.report.add(stepHMACFull, s)
	if err := os.RemoveAll(o.repo); err != nil {
		return err
	}
	for _, step := range []struct{ name, path, device string }{
		{stepHMACFile, b.path("volume"), ""},
		{stepHMACDevice, "/bench", b.volume.path()},
	} {
		k := stock{b.kopia, b.path("kopia")}
		if err := k.createWith(ctx, hashHMAC); err != nil {
			return err
		}
		s, _, err := k.snapshot(ctx, step.path, step.device, allocated)
		if err != nil {
			return err
		}
		b.report.add(step.name, s)
		if err := os.RemoveAll(k.dir); err != nil {
			return err
		}
	}
	// kopia has read the device through the page cache.
	return b.volume.forget()
}

// concludeHMAC compares the CPU time. blockmover must not need more than kopia.
func (r *report) concludeHMAC() {
	full := r.step(stepHMACFull).Median.CPUSeconds
	r.atMost("hmac-sha256: full, CPU, ours / kopia (device)", divide(full, r.step(stepHMACDevice).Median.CPUSeconds), 1, "")
	r.atMost("hmac-sha256: full, CPU, ours / kopia (file)", divide(full, r.step(stepHMACFile).Median.CPUSeconds), 1, "")
}
