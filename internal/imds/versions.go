package imds

// versions are the names at /, as EC2 lists them (seen on EC2 in 2024). As text they are in the order of their
// age, "latest" being the greatest.
var versions = []string{
	"1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01",
	"2008-09-01", "2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25", "2014-11-05",
	"2015-10-20", "2016-04-19", "2016-06-30", "2016-09-02", "2018-03-28", "2018-08-17", "2018-09-24",
	"2019-10-01", "2020-10-27", "2021-01-03", "2021-03-23", "2021-07-15", "2022-07-09", "2022-09-24",
	"2024-04-11", "latest",
}

// dynamicSince is the first version with dynamic/.
const dynamicSince = "2009-04-04"

// since tells which version of the EC2 User Guide's "Instance metadata categories" brought an item; what is not
// here has been there since 1.0, or the guide does not say (managed-ssh-keys, profile, system). A directory has
// the version of its oldest item.
var since = map[string]string{
	"autoscaling":                     "2021-07-15",
	"block-device-mapping":            "2007-12-15",
	"events":                          "2018-08-17",
	"events/recommendations":          "2020-10-27",
	"iam":                             "2012-01-12",
	"instance-action":                 "2008-09-01",
	"instance-life-cycle":             "2019-10-01",
	"instance-type":                   "2007-08-29",
	"ipv6":                            "2021-01-03",
	"local-hostname":                  "2007-01-19",
	"mac":                             "2011-01-01",
	"metrics":                         "2011-05-01",
	"network":                         "2011-01-01",
	"network/interfaces/macs/*/ipv6s": "2016-06-30",
	"network/interfaces/macs/*/subnet-ipv6-cidr-blocks": "2016-06-30",
	"network/interfaces/macs/*/vpc-ipv4-cidr-blocks":    "2016-06-30",
	"network/interfaces/macs/*/vpc-ipv6-cidr-blocks":    "2016-06-30",
	"placement":                      "2008-02-01",
	"placement/availability-zone-id": "2019-10-01",
	"placement/group-name":           "2020-08-24",
	"placement/host-id":              "2020-08-24",
	"placement/partition-number":     "2020-08-24",
	"placement/region":               "2020-08-24",
	"product-codes":                  "2007-03-01",
	"public-hostname":                "2007-01-19",
	"public-ipv4":                    "2007-01-19",
	"services":                       "2014-02-25",
	"services/partition":             "2015-10-20",
	"spot":                           "2014-11-05",
	"spot/instance-action":           "2016-11-15",
	"tags":                           "2021-03-23",
}

// exists tells whether a version has the item at this path below meta-data/.
func exists(path []string, version string) bool {
	if version == "latest" {
		return true
	}
	name := ""
	for i, part := range path {
		if i == 3 && path[0] == "network" {
			part = "*"
		}
		if i > 0 {
			name += "/"
		}
		name += part
	}
	return since[name] <= version
}
