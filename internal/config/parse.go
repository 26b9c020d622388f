package config

import (
	"fmt"
	"maps"
	"slices"

	"sigs.k8s.io/yaml"
)

// Parse parses and checks a document and fills in the defaults. An empty document gives the
// defaults.
func Parse(document []byte) (Config, error) {
	return parse(document, func(known []byte, c *Config) error { return yaml.UnmarshalStrict(known, c) })
}

// parseKnown is Parse for a start, when there is no configuration yet to stay with: it leaves out
// the fields that nobody knows.
func parseKnown(document []byte) (Config, error) {
	return parse(document, func(known []byte, c *Config) error { return yaml.Unmarshal(known, c) })
}

func parse(document []byte, unmarshal func([]byte, *Config) error) (Config, error) {
	var c Config
	known, ignored, err := withoutForeign(document)
	if err != nil {
		return Config{}, fmt.Errorf("parse configuration: %w", err)
	}
	if err := unmarshal(known, &c); err != nil {
		return Config{}, fmt.Errorf("parse configuration: %w", err)
	}
	c.Ignored = ignored
	c.ignoreValues()
	c.fillIn()
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("check configuration: %w", err)
	}
	return c, nil
}

// What Velero's node-agent has, and has no meaning here: pods that back up files, and the account by
// which it asks for changed blocks. Mover pods have one account for all they do: serviceAccountName.
var foreign = []string{"privilegedFsBackup", "csiSnapshotMetadataServiceConfigs"}

// withoutForeign returns a document without these fields, and their names. A document without them is
// returned as it is, so that errors name its lines.
func withoutForeign(document []byte) (known []byte, names []string, err error) {
	var fields map[string]any
	if err := yaml.Unmarshal(document, &fields); err != nil {
		return nil, nil, err
	}
	for _, key := range foreign {
		if _, found := fields[key]; found {
			delete(fields, key)
			names = append(names, key)
		}
	}
	if len(names) == 0 {
		return document, nil, nil
	}
	known, err = yaml.Marshal(fields)
	return known, names, err
}

// ignoreValues takes back what Velero's node-agent ignores, too.
func (c *Config) ignoreValues() {
	ignore := func(field, why string) { c.Ignored = append(c.Ignored, field+" ("+why+")") }
	for _, class := range slices.Sorted(maps.Keys(c.BackupPVC)) {
		pvc := c.BackupPVC[class]
		if pvc.SPCNoRelabeling && !pvc.ReadOnly {
			pvc.SPCNoRelabeling = false
			ignore("backupPVC."+class+".spcNoRelabeling", "it needs readOnly")
		}
		if pvc.ReadWriteOncePod && pvc.ReadOnly {
			pvc.ReadWriteOncePod = false
			ignore("backupPVC."+class+".readWriteOncePod", "not with readOnly")
		}
		c.BackupPVC[class] = pvc
	}
	if c.CachePVC != nil && c.CachePVC.StorageClass == "" {
		c.CachePVC = nil
		ignore("cachePVC", "it names no storageClass")
	}
}

// CacheClass returns the storage class of the cache of a mover pod that restores so many bytes, or ""
// for none. 0 bytes are not known.
func (c Config) CacheClass(size int64) string {
	const mebi = 1 << 20
	if c.CachePVC == nil || size != 0 && size < c.CachePVC.ResidentThresholdInMB*mebi {
		return ""
	}
	return c.CachePVC.StorageClass
}
